//! Messages as texts that a test can hold.

use std::fmt::Write;

use netlink_packet_core::Emitable;
use netlink_packet_route::link::LinkMessage;

/// The message as `xxd -p` would print it, without the netlink header.
pub(super) fn hexadecimal(message: &LinkMessage) -> String {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}
