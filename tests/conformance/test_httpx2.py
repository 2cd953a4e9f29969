from trunkline.testing import TransportConformance


class TestHttpx2(TransportConformance):
    backend = "httpx2"
    loops = ("asyncio",)  # what it does on a loop it shares with httpx, which runs on all of them
