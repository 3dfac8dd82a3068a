//! Credential helpers: `docker-credential-<name> get`, the host on stdin, JSON on stdout.
//!
//! Started without a shell, given a deadline, their output capped; what they print never reaches a message, since failing
//! helpers have been seen to print the secret itself.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::credentials::{Credential, Secret};
use crate::error::Error;

/// The most output that is read from a helper, in bytes.
const OUTPUT_LIMIT_BYTES: u64 = 64 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper `name` for the credential of `host`; `None` if it has none. It is killed when `limit` has passed.
pub(crate) async fn get(name: &str, host: &str, limit: Duration) -> Result<Option<Credential>, Error> {
    let program = format!("docker-credential-{name}");
    let failed =
        |reason: &str| Error::CredentialHelper { helper: program.clone(), reason: reason.to_owned() };
    if name.is_empty() || name.contains('/') {
        return Err(failed("its name must not be empty or contain a slash"));
    }
    let (success, output) = match tokio::time::timeout(limit, run(&program, host)).await {
        Ok(result) => result.map_err(|error| failed(&error.to_string()))?,
        Err(_) => return Err(failed(&format!("killed after {limit:?}"))),
    };
    if !success {
        // The one error that the protocol defines by its text.
        let text = String::from_utf8_lossy(&output);
        return if text.contains("credentials not found") { Ok(None) } else { Err(failed("it failed")) };
    }
    let answer: Answer =
        serde_json::from_slice(&output).map_err(|_| failed("its answer is not the JSON expected"))?;
    let secret = Secret::new(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credential::IdentityToken(secret),
        _ => Credential::Basic { user: answer.username, password: secret },
    }))
}

async fn run(program: &str, host: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input still answers.
        let _ = stdin.write_all(host.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_LIMIT_BYTES).read_to_end(&mut output).await?;
    }
    let status = child.wait().await?;
    Ok((status.success(), output))
}
