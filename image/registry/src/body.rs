//! Response bodies: read to a limit, with a time limit between two pieces.

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Bytes, Incoming};

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
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(piece) = next(transport, origin, &mut body).await? {
        if (bytes.len() + piece.len()) as u64 > limit_bytes {
            return Err(Error::TooLarge { what: what.to_owned(), limit_bytes });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// The next piece of a body; `None` at its end.
pub(crate) async fn next(
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
