//! Signal names and numbers, signal(7).

/// Names without the SIG prefix, by number, on the architectures that share the generic table.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The first and the last real-time signal, as programs see them (the C library keeps 32 and 33).
const REAL_TIME: (i32, i32) = (34, 64);

/// Reads a signal: a number (0 asks whether there is somebody to send one to, kill(2)), or a name with or without SIG, in any case; `RTMIN+n` and `RTMAX-n` too.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        REAL_TIME.0 + offset(rest.strip_prefix('+').unwrap_or(rest))?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        REAL_TIME.1 + offset(rest)?
    } else {
        let alias = match name {
            "CLD" => "CHLD",
            "IOT" => "ABRT",
            "POLL" => "IO",
            name => name,
        };
        return NAMES
            .iter()
            .position(|known| *known == alias)
            .and_then(|index| i32::try_from(index + 1).ok());
    };
    (REAL_TIME.0..=REAL_TIME.1).contains(&number).then_some(number)
}

/// The name of a signal with its SIG prefix.
pub fn name(signal: i32) -> String {
    match usize::try_from(signal - 1).ok().and_then(|index| NAMES.get(index)) {
        Some(name) => format!("SIG{name}"),
        None => format!("SIG{signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        for (text, number) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("RTMIN+1", Some(35)),
            ("SIGRTMAX-1", Some(63)),
            ("64", Some(64)),
            ("0", Some(0)),
            ("-1", None),
            ("65", None),
            ("BOGUS", None),
            ("", None),
        ] {
            assert_eq!(parse(text), number, "{text:?}");
        }
        assert_eq!(name(15), "SIGTERM");
    }
}
