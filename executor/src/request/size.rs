//! Amounts: memory sizes and CPU shares.

use serde::{Deserialize, Serialize};

use super::Refusal;

/// Reads `1073741824`, `512m`, `1.5g`, `64KiB`: units are powers of 1024, as `docker run --memory` takes them.
pub fn parse_bytes(text: &str) -> Result<u64, Refusal> {
    let refuse = |problem: &str| Refusal::new("size", text, problem);
    let lower = text.trim().to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refuse("the unit is none of b, k, m, g, t")),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| refuse("expected a number and a unit, such as 512m"))?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(|| refuse("it is more than can be counted"))?;
    let part =
        fraction_of(fraction, shift).ok_or_else(|| refuse("at most nine digits may follow the point"))?;
    bytes.checked_add(part).ok_or_else(|| refuse("it is more than can be counted"))
}

fn fraction_of(digits: &str, shift: u32) -> Option<u64> {
    if digits.is_empty() {
        return Some(0);
    }
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 9)?;
    Some((u128::from(value) * (1u128 << shift) / 10u128.pow(digits.len() as u32)) as u64)
}

/// Prints an amount the way people read it: `1.5GiB`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..UNITS.len() - 1).find(|step| bytes >> (10 * (step + 1)) == 0).unwrap_or(UNITS.len() - 1);
    if step == 0 {
        return format!("{bytes}B");
    }
    let tenths = (u128::from(bytes) * 10) >> (10 * step);
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[step])
}

/// A number of CPUs in thousandths: `--cpus 1.5` is 1500.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpus(pub u32);

impl MilliCpus {
    /// Reads `2`, `0.5`, `1.25`: at least a hundredth of a CPU, the least the kernel's scheduler can hand out.
    pub fn parse(text: &str) -> Result<MilliCpus, Refusal> {
        let refuse = |problem: &str| Refusal::new("number of CPUs", text, problem);
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 3 {
            return Err(refuse(
                "expected a number such as 2 or 0.5, with at most three digits after the point",
            ));
        }
        let whole: u32 = whole.parse().map_err(|_| refuse("it is more than any machine has"))?;
        let part: u32 =
            format!("{fraction:0<3}").parse().map_err(|_| refuse("expected a number such as 0.5"))?;
        let milli = whole.checked_mul(1000).and_then(|milli| milli.checked_add(part));
        let milli = milli.ok_or_else(|| refuse("it is more than any machine has"))?;
        if milli < 10 { Err(refuse("less than 0.01 of a CPU")) } else { Ok(MilliCpus(milli)) }
    }
}

/// Reads a list of CPUs such as `0-3,5`; the answer is sorted, each once.
pub fn parse_cpu_list(text: &str) -> Result<Vec<u32>, Refusal> {
    let refuse = |problem: &str| Refusal::new("list of CPUs", text, problem);
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |text: &str| text.parse::<u32>().map_err(|_| refuse("expected numbers and ranges such as 0-3,5"));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last > 65_535 {
            return Err(refuse("a range must rise and end below 65536"));
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("512m", 512 << 20),
            ("1.5g", 1536 << 20),
            ("64KiB", 64 << 10),
            ("2T", 2 << 40),
            ("0.5k", 512),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "12x", "-1", "1..5g", "99999999999t", "1,5g", "0x10", "1e3"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_print_shortly() {
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (1 << 30, "1.0GiB")] {
            assert_eq!(show_bytes(bytes), text);
        }
    }

    #[test]
    fn cpus_are_read_to_the_thousandth() {
        assert_eq!(MilliCpus::parse("1.5"), Ok(MilliCpus(1500)));
        assert_eq!(MilliCpus::parse("0.01"), Ok(MilliCpus(10)));
        for text in ["", "0", "0.001", "-1", "1.5555", "a", ".5", "4294968"] {
            assert!(MilliCpus::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn cpu_lists_are_sorted_sets() {
        assert_eq!(parse_cpu_list("3,0-1,1"), Ok(vec![0, 1, 3]));
        for text in ["", "a", "3-1", "1,,2", "0-99999"] {
            assert!(parse_cpu_list(text).is_err(), "{text:?}");
        }
    }
}
