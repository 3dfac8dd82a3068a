//! One resolver configuration of several networks.

use crate::result::Dns;

/// Merges name services, the most important first.
///
/// Name servers and search domains keep their order without repetition; of an option set twice the last counts, so later
/// networks refine; the domain is used only if nobody lists a search.
pub fn merge_dns<'a>(all: impl IntoIterator<Item = &'a Dns>) -> Dns {
    let mut merged = Dns::default();
    for dns in all {
        append_new(&mut merged.nameservers, &dns.nameservers);
        append_new(&mut merged.search, &dns.search);
        for option in &dns.options {
            merged.options.retain(|old| option_name(old) != option_name(option));
            merged.options.push(option.clone());
        }
        merged.domain = merged.domain.or_else(|| dns.domain.clone());
    }
    if !merged.search.is_empty() {
        merged.domain = None;
    }
    merged
}

fn append_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn option_name(option: &str) -> &str {
    option.split(':').next().unwrap_or(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_keep_their_order_and_the_last_of_an_option_counts() {
        let dns = |servers: &[&str], options: &[&str], domain: Option<&str>| Dns {
            nameservers: servers.iter().map(ToString::to_string).collect(),
            options: options.iter().map(ToString::to_string).collect(),
            domain: domain.map(str::to_owned),
            search: Vec::new(),
        };
        let one = dns(&["1.1.1.1", "2.2.2.2"], &["ndots:1", "rotate"], Some("a"));
        let two = dns(&["2.2.2.2", "3.3.3.3"], &["ndots:5"], Some("b"));
        let merged = merge_dns([&one, &two]);
        assert_eq!(merged.nameservers, ["1.1.1.1", "2.2.2.2", "3.3.3.3"]);
        assert_eq!(merged.options, ["rotate", "ndots:5"]);
        assert_eq!(merged.domain.as_deref(), Some("a"));
    }
}
