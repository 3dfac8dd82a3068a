//! Response bodies: read to a limit, with a time limit between two pieces.

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Bytes, Incoming};

use crate::encoding::Decoding;
use crate::error::Error;
use crate::transport::{Origin, Transport, transfer};

/// Reads a whole body of at most `limit_bytes`.
pub(crate) async fn collect(
    transport: &Transport,
    origin: &Origin,
    response: Response<Incoming>,
    what: &str,
    limit_bytes: u64,
) -> Result<Bytes, Error> {
    let mut body = Body::of(response);
    let mut bytes = Vec::new();
    while let Some(piece) = body.next(transport, origin).await? {
        if (bytes.len() + piece.len()) as u64 > limit_bytes {
            return Err(Error::TooLarge { what: what.to_owned(), limit_bytes });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// A body on its way, without the encoding that somebody put on it.
pub(crate) struct Body {
    incoming: Incoming,
    decoding: Decoding,
}

impl Body {
    /// An encoding that is unknown stays: only what an error says comes so far with one.
    pub(crate) fn of(response: Response<Incoming>) -> Body {
        let decoding = Decoding::of(response.headers()).unwrap_or_default();
        Body { incoming: response.into_body(), decoding }
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(
        &mut self,
        transport: &Transport,
        origin: &Origin,
    ) -> Result<Option<Bytes>, Error> {
        loop {
            let decoded = self.decoding.next().map_err(|error| Error::Protocol {
                host: origin.authority(),
                what: "Content-Encoding",
                reason: format!("the body is not in it: {error}"),
            })?;
            if decoded.is_some() {
                return Ok(decoded);
            }
            match receive(transport, origin, &mut self.incoming).await? {
                Some(piece) => self.decoding.feed(piece),
                None => return Ok(None),
            }
        }
    }
}

/// The next piece of a body as it is sent; `None` at its end.
async fn receive(
    transport: &Transport,
    origin: &Origin,
    body: &mut Incoming,
) -> Result<Option<Bytes>, Error> {
    let limit = transport.timeouts().stall;
    loop {
        let frame = tokio::time::timeout(limit, body.frame()).await.map_err(|_| Error::Timeout {
            operation: "the next piece of the body",
            host: origin.authority(),
            limit,
        })?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(transfer("the transfer", origin, &error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
