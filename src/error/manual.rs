//! docs/ERRORS.md, made from the table.

use super::{Advice, Reason};

const PREFACE: &str = "\
<!-- Made from the table in src/error.rs. Change it there, then: UPDATE_DOCS=1 cargo test --lib manual -->

# Errors

Every error has a `code` (the canonical codes of gRPC), a `reason` (stable: what programs look at), a `message` (for people; may
change), `details`, and `retryable`: whether the same thing, sent again later, may succeed, and where it is known not before which
`retry_after`. A refused frame is answered and nothing else happens: the connection lives on, other sessions and members are not
disturbed.

## How they look

On a connection, gRPC or WebSocket alike, an error is a frame whose `replyTo` is the refused frame's `id`:

```json
{\"replyTo\":\"msg-123\",\"error\":{\"code\":\"INVALID_ARGUMENT\",\"reason\":\"INVALID_FIELD\",\"message\":\"…\",\"details\":{\"field\":\"type\"}}}
```

An error with a `seq` is in the session's log: it is the end of the request that `replyTo` names. What a worker reports of its own
accord looks the same; its reasons are the worker's.

A gRPC call, or a gRPC stream that the gateway ends, has the same as its status: code and message, and in the details a
`google.rpc.ErrorInfo` (`reason`, domain `twinspan`, `details` as metadata) and, where there is a `retry_after`, a
`google.rpc.RetryInfo`. Over HTTP the code becomes the status below.

A WebSocket that the gateway ends has a close code, and the reason's name as the close reason. The code alone tells what to do:

| close code | connect again? |
|---|---|
| 1000, 1001 | as you like: the end was in order |
| 1002, 1003, 1007, 1008, 1009, 1010 | no: what was sent is wrong, and would be wrong again |
| 1006, 1011, 1012, 1013 | yes, with backoff |
| 4000 to 4499 | yes, with backoff |
| 4500 to 4999 | no, not until something has been changed |

1006 is never sent: it is what a browser reports when the network broke.
";

/// docs/ERRORS.md.
pub fn markdown() -> String {
    let mut text = PREFACE.to_owned();
    text += "\n## The reasons\n\n| reason | gRPC code | HTTP | close code | retry? | meaning |\n|---|---|---|---|---|---|\n";
    for reason in Reason::ALL {
        let row = reason.row();
        let close = row.close.map_or_else(|| "–".to_owned(), |code| code.to_string());
        let (code, http, meaning) = (row.code.as_str_name(), reason.http_status(), row.text);
        text += &format!(
            "| `{}` | {code} | {http} | {close} | {} | {meaning} |\n",
            row.name,
            retry(*reason)
        );
    }
    text
}

fn retry(reason: Reason) -> &'static str {
    match (reason.row().retryable, reason.advice()) {
        (true, _) => "yes",
        (false, Advice::Reconnect) => "connect again",
        (false, Advice::Stop) => "no",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_are_in_ranges_that_carry_the_advice() {
        for reason in Reason::ALL {
            let again = match reason.row().close {
                None => continue,
                Some(1006 | 1011..=1013 | 4000..=4499) => Advice::Reconnect,
                Some(1002 | 1003 | 1007..=1010 | 4500..=4999) => Advice::Stop,
                Some(code) => panic!("{reason} has close code {code}, which the manual does not explain"),
            };
            assert_eq!(reason.advice(), again, "{reason}");
        }
    }

    #[test]
    fn close_codes_of_our_own_are_one_for_each_reason() {
        let own = Reason::ALL
            .iter()
            .filter_map(|reason| reason.row().close)
            .filter(|code| *code >= 4000);
        let mut codes: Vec<_> = own.collect();
        codes.sort_unstable();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
    }

    #[test]
    fn names_are_unique_and_stable_in_form() {
        for reason in Reason::ALL {
            assert_eq!(Reason::by_name(reason.row().name), Some(*reason));
            assert!(
                reason
                    .row()
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
            );
        }
    }
}
