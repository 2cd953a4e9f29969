"""A Trunkline transport for the users of other HTTP libraries, in those libraries' own types.

`trunkline.adapters.httpx2` is for the SDKs that run on httpx2, `trunkline.adapters.httpx` for all
that is on httpx. Only the library whose adapter is imported must be installed.
"""
