"""HTTP/1.1 for backends: what an exchange on a stream asks of every one, whatever its library.

A `Wire` carries one exchange after another. It sends what the library has framed and listens
meanwhile, gives out a response head that has been checked, then the bytes of its body and no byte
more, and knows what a failure means. So a library may be lax and still be used: it sees nothing but
one well-formed response. A `WireExchange` makes an exchange of the two.
"""

from trunkline._content import RequestContent as RequestContent
from trunkline.http1._failure import Course as Course, causes as causes
from trunkline.http1._head import (
    Head as Head,
    RawHeaders as RawHeaders,
    check_head as check_head,
    decode_headers as decode_headers,
    wire_fields as wire_fields,
)
from trunkline.http1._wire import (
    UploadStopped as UploadStopped,
    Wire as Wire,
    WireExchange as WireExchange,
    is_refusal as is_refusal,
)
