from trunkline.testing import TransportConformance


class TestAiohttp(TransportConformance):
    backend = "aiohttp"
