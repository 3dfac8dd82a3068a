//! Who a task runs as: users and groups by name, looked up in the *image's* `/etc/passwd` and `/etc/group`.
//!
//! The text of these files is the image's and so untrusted: lines that do not parse are skipped, ids outside a `u32` or
//! equal to 2^32-1 (which the kernel takes for "leave it") never match. Reading the files is the caller's business; see
//! `rootfs_file`.

use crate::request::Refusal;

/// The id that setuid(2) and its kin take to mean "no change": using it would leave a process root.
const NO_CHANGE: u32 = u32::MAX;

/// Supplementary groups of a user beyond this are an attack or an accident; the kernel's own limit is 65,536.
const GROUPS_LIMIT: usize = 1024;

/// Who a process runs as, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids, sorted.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: Option<String>,
}

/// The text of an image's account files. Missing files are empty.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Accounts {
    /// Resolves `user`, `uid`, `user:group`, `uid:gid` and mixtures; the empty text is root. `extra_groups` are names or
    /// numbers to add.
    ///
    /// As in Docker, a user that is given with a group has no supplementary groups but the extra ones.
    pub fn resolve(&self, text: &str, extra_groups: &[String]) -> Result<Identity, Refusal> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let mut identity = self.resolve_user(if user.is_empty() { "0" } else { user }, text)?;
        if !group.is_empty() {
            identity.gid = self.resolve_group(group, text)?;
            identity.groups.clear();
        }
        for extra in extra_groups {
            identity.groups.push(self.resolve_group(extra, extra)?);
        }
        identity.groups.sort_unstable();
        identity.groups.dedup();
        Ok(identity)
    }

    fn resolve_user(&self, user: &str, asked: &str) -> Result<Identity, Refusal> {
        let number = parse_id(user, asked)?;
        let found = self.users().find(|entry| entry.name == user || Some(entry.uid) == number);
        match (found, number) {
            (Some(entry), _) => Ok(Identity {
                uid: entry.uid,
                gid: entry.gid,
                groups: self.groups_of(entry.name),
                home: Some(entry.home.to_owned()).filter(|home| is_clean(home)),
            }),
            (None, Some(uid)) => Ok(Identity { uid, ..Identity::default() }),
            (None, None) => Err(Refusal::new("user", asked, "the image's /etc/passwd has no such user")),
        }
    }

    fn resolve_group(&self, group: &str, asked: &str) -> Result<u32, Refusal> {
        let number = parse_id(group, asked)?;
        let named = || self.groups().find(|entry| entry.name == group).map(|entry| entry.gid);
        number
            .or_else(named)
            .ok_or_else(|| Refusal::new("group", asked, "the image's /etc/group has no such group"))
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let is_member = |entry: &Group<'_>| entry.members.split(',').any(|member| member.trim() == user);
        self.groups().filter(is_member).map(|entry| entry.gid).take(GROUPS_LIMIT).collect()
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (valid_id(fields.next()?)?, valid_id(fields.next()?)?);
            let home = fields.nth(1).unwrap_or("");
            (!name.is_empty()).then_some(User { name, uid, gid, home })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let gid = valid_id(fields.next()?)?;
            (!name.is_empty()).then_some(Group { name, gid, members: fields.next().unwrap_or("") })
        })
    }
}

fn valid_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != NO_CHANGE)
}

/// A number that is a valid id, `None` for a name, a refusal for a number that is no id.
fn parse_id(text: &str, asked: &str) -> Result<Option<u32>, Refusal> {
    let looks_like_number =
        text.strip_prefix(['-', '+']).unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit());
    if !looks_like_number {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::new("user or group id", asked, "ids have no sign"));
    }
    let id = valid_id(text);
    id.map(Some).ok_or_else(|| Refusal::new("user or group id", asked, "ids go from 0 to 4294967294"))
}

/// A home directory becomes an environment variable: it must be a plain absolute path.
fn is_clean(home: &str) -> bool {
    home.starts_with('/') && !home.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:\nevil:x:4294967295:0::/:\nbroken\nwide:x:4294967296:0::/:\n".into(),
            group: "root:x:0:\nwww:x:33:\nlog:x:4:www,other\nvideo:x:44: www\n".into(),
        }
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let www = accounts().resolve("www", &[]).unwrap();
        assert_eq!((www.uid, www.gid, www.groups), (33, 33, vec![4, 44]));
        assert_eq!(accounts().resolve("33", &[]).unwrap().home.as_deref(), Some("/var/www"));
        assert_eq!(accounts().resolve("", &[]).unwrap().uid, 0);
        assert_eq!(accounts().resolve("1234", &[]).unwrap(), Identity { uid: 1234, ..Identity::default() });
    }

    #[test]
    fn a_named_group_replaces_the_users_groups() {
        let www = accounts().resolve("www:log", &["video".into(), "7".into()]).unwrap();
        assert_eq!((www.gid, www.groups), (4, vec![7, 44]));
    }

    #[test]
    fn ids_that_mean_no_change_or_wrap_around_are_refused() {
        for text in
            ["4294967295", "4294967296", "-1", "+5", "0:4294967295", "evil", "wide", "nobody", "0:nogroup"]
        {
            assert!(accounts().resolve(text, &[]).is_err(), "{text}");
        }
    }
}
