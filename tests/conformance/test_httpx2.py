from trunkline.testing import TransportConformance


class TestHttpx2(TransportConformance):
    backend = "httpx2"
