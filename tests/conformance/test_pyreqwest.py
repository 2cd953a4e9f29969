from trunkline.testing import TransportConformance


class TestPyreqwest(TransportConformance):
    backend = "pyreqwest"
