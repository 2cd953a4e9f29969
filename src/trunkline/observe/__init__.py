"""What others are told of a transport: OpenTelemetry, in `trunkline.observe.otel`.

This module knows where that is and nothing else. Snapshot, events and logs need nothing from here.
"""
