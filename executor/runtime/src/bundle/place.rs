//! Where in a JSON document an error lies, in words: asked for when there is one, so that the parser need not keep track.

/// What the walk is inside of.
enum Within<'a> {
    /// An object, at the value of this key where it has come to one.
    Object(Option<&'a str>),
    /// An array, at this element.
    Array(usize),
}

/// The path of the value that a parser was at when it had read `column` bytes of line `line`, both counted from 1:
/// `process.user.uid`, `mounts[2].options[0]`, or nothing for the whole document.
pub(super) fn path(text: &str, line: usize, column: usize) -> String {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let read = &text.as_bytes()[..text.len().min(before + column)];
    let mut around = Vec::new();
    let mut at = 0;
    while let Some(byte) = read.get(at) {
        match byte {
            b'"' => {
                let end = string_end(read, at);
                if let Some(Within::Object(key @ None)) = around.last_mut() {
                    *key = text.get(at + 1..end);
                }
                at = end;
            }
            b'{' => around.push(Within::Object(None)),
            b'[' => around.push(Within::Array(0)),
            b',' => match around.last_mut() {
                Some(Within::Object(key)) => *key = None,
                Some(Within::Array(index)) => *index += 1,
                None => {}
            },
            b'}' | b']' => {
                around.pop();
            }
            _ => {}
        }
        at += 1;
    }
    around.iter().fold(String::new(), |path, within| match within {
        Within::Object(None) => path,
        Within::Object(Some(key)) if path.is_empty() => (*key).to_owned(),
        Within::Object(Some(key)) => format!("{path}.{key}"),
        Within::Array(index) => format!("{path}[{index}]"),
    })
}

/// Where the string that begins at `start` has its closing quote, or what was read ends.
fn string_end(read: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = read.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    read.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_what_was_read_last() {
        let text = "{\"a\": {\"b\\\"]\": [1, {\"c\": 2}, \"x,y\"],\n \"d\": 3}, \"e\": []}";
        for (line, read, expected) in [
            (1, "{", ""),
            (1, "{\"a\": ", "a"),
            (1, "{\"a\": {\"b\\\"]\": [1", "a.b\\\"][0]"),
            (1, "{\"a\": {\"b\\\"]\": [1, {\"c\": 2", "a.b\\\"][1].c"),
            (1, "{\"a\": {\"b\\\"]\": [1, {\"c\": 2}", "a.b\\\"][1]"),
            (1, "{\"a\": {\"b\\\"]\": [1, {\"c\": 2}, \"x,", "a.b\\\"][2]"),
            (1, "{\"a\": {\"b\\\"]\": [1, {\"c\": 2}, \"x,y\"]", "a.b\\\"]"),
            (2, " \"d\": 3", "a.d"),
            (2, " \"d\": 3}", "a"),
            (2, " \"d\": 3}, \"e\": []}", ""),
            (9, "far behind the end", ""),
        ] {
            assert_eq!(path(text, line, read.len()), expected, "{read:?} of line {line}");
        }
    }
}
