//! Who the container is to the kernel: its session, its keyring, its names.

use cofferdam_plan::{Builder, Namespace, Op, Refusal, Stage, Text};

use crate::compile::Context;

/// Longest host or domain name, uname(2).
const NAME_MAX_BYTES: usize = 64;

/// Session, keyring, hostname, domainname.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    builder.step(Stage::Enter, "every container", Op::NewSession);
    if !context.container.no_new_keyring {
        let name = Text::new(format!("_ses.{}", context.container.id), "every container")?;
        builder.step(Stage::Enter, "every container", Op::NewKeyring { name });
    }
    if let Some(name) = name(context, context.spec().hostname().as_deref(), "/hostname")? {
        builder.step(Stage::Enter, "/hostname", Op::SetHostname { name });
    }
    if let Some(name) = name(context, context.spec().domainname().as_deref(), "/domainname")? {
        builder.step(Stage::Enter, "/domainname", Op::SetDomainname { name });
    }
    Ok(())
}

fn name(context: &Context<'_>, name: Option<&str>, pointer: &str) -> Result<Option<Text>, Refusal> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    if !context.membership.has(Namespace::Uts) {
        return Err(Refusal::invalid(pointer, "setting a name needs a uts namespace in linux.namespaces"));
    }
    if name.len() > NAME_MAX_BYTES {
        return Err(Refusal::invalid(pointer, format!("longer than {NAME_MAX_BYTES} bytes")));
    }
    Text::new(name, pointer).map(Some)
}
