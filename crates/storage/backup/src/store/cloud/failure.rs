//! What kind of failure an error of the client is.

use std::error::Error as _;

use object_store::client::{HttpError, HttpErrorKind};

use crate::store::ErrorKind;

/// The longest text of an error that is kept, in characters: some servers answer with a page.
const TEXT_MAX: usize = 600;

/// An error's kind, and what it says.
pub(super) fn of(error: &object_store::Error) -> (ErrorKind, String) {
    use object_store::Error as E;
    let text: String = error.to_string().chars().take(TEXT_MAX).collect();
    let kind = match error {
        E::NotFound { .. } => ErrorKind::Missing,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => by_text(&text).unwrap_or(ErrorKind::Denied),
        _ => by_text(&text).or_else(|| by_connection(error)).unwrap_or(ErrorKind::Broken),
    };
    (kind, text)
}

/// By the code that a store puts into its answer, or else by the HTTP status.
fn by_text(text: &str) -> Option<ErrorKind> {
    // Codes of S3, MinIO, Ceph, Google and Azure. Services that hand out tokens answer with `invalid_…`.
    let codes: [(&[&str], ErrorKind); 4] = [
        (
            &["QuotaExceeded", "XMinioStorageFull", "StorageFull", "InsufficientCapacity", "EntityTooLarge"],
            ErrorKind::Full,
        ),
        (
            &[
                "SlowDown",
                "RequestTimeout",
                "ServiceUnavailable",
                "TooManyRequests",
                "Throttl",
                "ServerBusy",
                "OperationTimedOut",
                "rateLimitExceeded",
            ],
            ErrorKind::Slow,
        ),
        (
            &[
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "ExpiredToken",
                "AccessDenied",
                "InvalidToken",
                "RequestTimeTooSkewed",
                "AuthFailure",
                "AuthenticationFailed",
                "AuthorizationFailure",
                "AuthorizationPermissionMismatch",
                "AccountIsDisabled",
                "invalid_grant",
                "invalid_client",
            ],
            ErrorKind::Denied,
        ),
        (&["NoSuchBucket", "NoSuchKey", "ContainerNotFound", "BlobNotFound"], ErrorKind::Missing),
    ];
    let coded = codes.iter().find(|(codes, _)| codes.iter().any(|code| text.contains(code)));
    coded.map(|(_, kind)| *kind).or_else(|| match status(text)? {
        401 | 403 => Some(ErrorKind::Denied),
        404 => Some(ErrorKind::Missing),
        408 | 429 | 503 | 504 => Some(ErrorKind::Slow),
        500 | 502 => Some(ErrorKind::Down),
        507 => Some(ErrorKind::Full),
        _ => None,
    })
}

/// The HTTP status in the text of an error. The client keeps it in a type that it does not show.
pub(super) fn status(text: &str) -> Option<u16> {
    // The second is that of a part of a request: Azure's client deletes that way.
    let (_, rest) = text.split_once("status code: ").or_else(|| text.split_once("(code: "))?;
    rest.get(..3)?.parse().ok()
}

fn by_connection(error: &object_store::Error) -> Option<ErrorKind> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(http) = inner.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Connect | HttpErrorKind::Request | HttpErrorKind::Interrupted => {
                    Some(ErrorKind::Down)
                }
                HttpErrorKind::Timeout => Some(ErrorKind::Slow),
                _ => None,
            };
        }
        source = inner.source();
    }
    // Credentials are fetched over HTTP too, where there are none.
    let text = error.to_string();
    (text.contains("nstance metadata") || text.contains("169.254.169.254")).then_some(ErrorKind::Denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_their_kinds() {
        let of_status = |code: u16, body: &str| {
            by_text(&format!("Server returned non-2xx status code: {code} X: {body}"))
        };
        for (code, body, kind) in [
            (403, "<Code>InvalidAccessKeyId</Code>", Some(ErrorKind::Denied)),
            (403, "", Some(ErrorKind::Denied)),
            (403, "<Code>QuotaExceeded</Code>", Some(ErrorKind::Full)),
            (503, "<Code>SlowDown</Code>", Some(ErrorKind::Slow)),
            (503, "", Some(ErrorKind::Slow)),
            (507, "<Code>XMinioStorageFull</Code>", Some(ErrorKind::Full)),
            (404, "<Code>NoSuchBucket</Code>", Some(ErrorKind::Missing)),
            (403, "<Code>AuthenticationFailed</Code>", Some(ErrorKind::Denied)),
            (400, r#"{"error": "invalid_grant"}"#, Some(ErrorKind::Denied)),
            (500, "<Code>OperationTimedOut</Code>", Some(ErrorKind::Slow)),
            (503, "<Code>ServerBusy</Code>", Some(ErrorKind::Slow)),
            (404, "<Code>ContainerNotFound</Code>", Some(ErrorKind::Missing)),
            (502, "", Some(ErrorKind::Down)),
            (500, "<Code>InternalError</Code>", Some(ErrorKind::Down)),
        ] {
            assert_eq!(of_status(code, body), kind, "{code} {body}");
        }
        assert_eq!(status("nothing"), None);
        assert_eq!(by_text("Bulk delete request failed for key a: no (code: 403)"), Some(ErrorKind::Denied));
    }
}
