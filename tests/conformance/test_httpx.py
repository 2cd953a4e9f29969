from trunkline.testing import TransportConformance


class TestHttpx(TransportConformance):
    backend = "httpx"
