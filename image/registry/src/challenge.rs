//! `WWW-Authenticate`: what a registry wants before it answers (RFC 9110 §11.6.1).
//!
//! Registries send one or several challenges in one or several headers, upper case or lower, with quoted or bare
//! parameters. All of that is read; what cannot be read is skipped, so that one odd challenge does not hide a good one.

/// One challenge: a scheme and its parameters, names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// The scheme in lower case, such as `bearer`.
    pub(crate) scheme: String,
    parameters: Vec<(String, String)>,
}

/// The most parameters that are read from one header.
const PARAMETER_LIMIT: usize = 32;

impl Challenge {
    /// The value of a parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Reads every challenge of one header value.
    pub(crate) fn parse_all(header: &str) -> Vec<Challenge> {
        let mut challenges: Vec<Challenge> = Vec::new();
        let mut rest = header;
        for _ in 0..PARAMETER_LIMIT {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let length = rest.bytes().take_while(|byte| is_token(*byte)).count();
            if length == 0 {
                break;
            }
            let (word, after) = rest.split_at(length);
            let after_space = after.trim_start_matches([' ', '\t']);
            match (after_space.strip_prefix('='), challenges.last_mut()) {
                (Some(value), Some(challenge)) => {
                    let (value, remaining) = read_value(value.trim_start_matches([' ', '\t']));
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                    rest = remaining;
                }
                (Some(_), None) => break,
                (None, _) => {
                    challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                    rest = after_space;
                }
            }
        }
        challenges
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A quoted string with backslash escapes, or everything up to a comma or a space.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_every_form_that_registries_send() {
        for header in [
            r#"Bearer realm="https://a/token",service="s",scope="repository:x:pull""#,
            r#"BEARER realm="https://a/token", service=s , scope="repository:x:pull""#,
            r#"Negotiate, Bearer realm="https://a/token",service="s",scope="repository:x:pull", Basic realm="r""#,
        ] {
            let challenges = Challenge::parse_all(header);
            let bearer = challenges.iter().find(|challenge| challenge.scheme == "bearer").unwrap();
            assert_eq!(bearer.parameter("realm"), Some("https://a/token"), "{header}");
            assert_eq!(bearer.parameter("service"), Some("s"));
            assert_eq!(bearer.parameter("scope"), Some("repository:x:pull"));
        }
        let odd = Challenge::parse_all(r#"Basic realm="a \"b\", c"#);
        assert_eq!(odd[0].parameter("realm"), Some(r#"a "b", c"#));
        assert!(Challenge::parse_all("=").is_empty());
        assert!(Challenge::parse_all("").is_empty());
    }
}
