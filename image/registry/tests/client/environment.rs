//! What the environment says: credential files, helpers, proxies. Each case is a process of its own, whose environment is
//! nobody else's.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cofferdam_registry::{PlainHttp, Timeouts};

use super::fake::Auth;
use super::secure::{Clients, fixture, start};
use super::*;

const IMAGE: &str = "COFFERDAM_TEST_IMAGE";

/// Not a test of its own: what the processes run.
#[test]
fn child_that_resolves() {
    let Ok(image) = std::env::var(IMAGE) else { return };
    let timeouts = Timeouts { helper: Duration::from_millis(700), ..Timeouts::default() };
    let plain_http = match std::env::var("COFFERDAM_TEST_PLAIN") {
        Ok(_) => PlainHttp::Allowed,
        Err(_) => PlainHttp::LoopbackOnly,
    };
    let options = ClientOptions {
        credentials: CredentialSource::Files,
        proxies: None,
        ca_files: vec![fixture("ca.pem")],
        timeouts,
        plain_http,
        ..options()
    };
    let result = Client::new(options)
        .and_then(|client| client.resolve(&ImageRef::parse(&image).unwrap(), &platform()));
    match result {
        Ok(_) => println!("resolved"),
        Err(error) => println!("failed: {}", shown(&error)),
    }
}

fn resolve_in_child(image: &ImageRef, variables: &[(&str, &Path)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "environment::child_that_resolves", "--nocapture"]).env_clear();
    command.env(IMAGE, image.to_string()).envs(variables.iter().copied());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

fn auth_file(path: &Path, registry: &str, user: &str) {
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:p"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!(r#"{{"auths":{{"{registry}":{{"auth":"{pair}"}}}}}}"#)).unwrap();
}

#[test]
fn a7_files_are_looked_through_in_order() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (explicit, runtime, config, home) = (at("explicit.json"), at("run"), at("config"), at("home"));
    let places = [
        ("one", explicit.clone()),
        ("two", runtime.join("containers/auth.json")),
        ("three", config.join("containers/auth.json")),
        ("four", home.join(".docker/config.json")),
        ("five", home.join(".dockercfg")),
    ];
    for (user, path) in &places[..4] {
        auth_file(path, reference.registry(), user);
    }
    let pair = "Zml2ZTpw"; // five:p
    std::fs::write(&places[4].1, format!(r#"{{"{}":{{"auth":"{pair}"}}}}"#, reference.registry())).unwrap();
    let variables: [(&str, &Path); 4] = [
        ("REGISTRY_AUTH_FILE", &explicit),
        ("XDG_RUNTIME_DIR", &runtime),
        ("XDG_CONFIG_HOME", &config),
        ("HOME", &home),
    ];
    for (user, path) in &places {
        registry.set_auth(Auth::Basic((*user).to_owned(), "p".to_owned()));
        let said = resolve_in_child(&reference, &variables);
        assert!(said.contains("resolved"), "{user}: {said}");
        // The next one counts when this one is gone.
        std::fs::remove_file(path).unwrap();
    }
    assert!(resolve_in_child(&reference, &variables).contains("log in first"));
}

#[test]
fn a8_n11_helpers_are_programs_with_limits() {
    let registry = FakeRegistry::start();
    let (reference, ..) = image(&registry);
    registry.set_auth(Auth::Basic("u".into(), "p".into()));
    let folder = tempfile::tempdir().unwrap();
    let helper = |name: &str, script: &str| {
        let path = folder.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    let host = reference.registry().to_owned();
    helper(
        "good",
        "read host; printf '{\"Username\":\"u\",\"Secret\":\"p\",\"ServerURL\":\"%s\"}' \"$host\"",
    );
    helper("bad", "echo 'hunter2 is wrong' >&2; echo hunter2; exit 1");
    helper("none", "echo 'credentials not found in native keychain'; exit 1");
    helper("endless", "exec yes hunter2");
    let pid_file = folder.path().join("pid");
    helper("slow", &format!("echo $$ > {}; exec sleep 60", pid_file.display()));
    let injected = folder.path().join("injected");
    let shell = format!("x; touch {}", injected.display());
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let file = folder.path().join("config.json");
    for (config, expected) in [
        (format!(r#"{{"credHelpers":{{"{host}":"good"}}}}"#), "resolved"),
        (r#"{"credsStore":"good"}"#.to_owned(), "resolved"),
        (format!(r#"{{"credHelpers":{{"{host}":"bad"}}}}"#), "it failed"),
        (format!(r#"{{"credHelpers":{{"{host}":"none"}}}}"#), "log in first"),
        (format!(r#"{{"credHelpers":{{"{host}":"endless"}}}}"#), "it failed"),
        (format!(r#"{{"credHelpers":{{"{host}":"slow"}}}}"#), "killed after 700ms"),
        (format!(r#"{{"credHelpers":{{"{host}":"../x"}}}}"#), "slash"),
        (format!(r#"{{"credHelpers":{{"{host}":"{}"}}}}"#, shell.replace('/', "|")), "No such file"),
    ] {
        std::fs::write(&file, config).unwrap();
        let variables: [(&str, &Path); 2] = [("PATH", Path::new(&path)), ("REGISTRY_AUTH_FILE", &file)];
        let said = resolve_in_child(&reference, &variables);
        assert!(said.contains(expected) && !said.contains("hunter2"), "{expected}: {said}");
    }
    assert!(!injected.exists());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    let deadline = Instant::now() + Duration::from_secs(5);
    while process.exists() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(!process.exists(), "a helper that is late is killed");
}

/// What went through a proxy: request lines, headers, and the first byte that the client sent into a tunnel.
type Log = Arc<Mutex<Vec<String>>>;

/// A proxy that leads every name to `target`.
fn proxy(target: std::net::SocketAddr) -> (std::net::SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let log = Log::default();
    let shared = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = Arc::clone(&shared);
            std::thread::spawn(move || drop(relay(stream, target, &log)));
        }
    });
    (address, log)
}

fn relay(mut client: TcpStream, target: std::net::SocketAddr, log: &Log) -> std::io::Result<()> {
    use std::io::Write;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    log.lock().unwrap().push(text.clone());
    let mut server = TcpStream::connect(target)?;
    if text.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 here you are\r\n\r\n")?;
        let mut first = [0];
        client.read_exact(&mut first)?;
        log.lock().unwrap().push(format!("tunnelled {}", first[0]));
        server.write_all(&first)?;
    } else {
        server.write_all(&head)?;
    }
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
    std::io::copy(&mut server, &mut client).map(drop)
}

#[test]
fn a19_a11_proxies_are_used_as_the_environment_says() {
    let plain = FakeRegistry::start();
    image(&plain);
    let secure = start("server.pem", Clients::Anybody);
    image(&secure);
    let named = |name: &str| ImageRef::parse(name).unwrap();
    let (plain_proxy, plain_log) = proxy(plain.address);
    let (secure_proxy, secure_log) = proxy(secure.address);
    let url = |address: std::net::SocketAddr| format!("http://user:hunter2@{address}");
    let (plain_url, secure_url) = (url(plain_proxy), url(secure_proxy));
    let child = |name: &str, variables: &[(&str, &str)]| {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        let variables: Vec<(&str, &Path)> =
            variables.iter().map(|(key, value)| (*key, Path::new(*value))).collect();
        let said = resolve_in_child(&named(name), &variables);
        assert!(!said.contains("hunter2"), "{said}");
        said
    };
    // TLS goes through a tunnel; the certificate is the registry's, so its name must be right.
    let said = child("localhost.example/a/b:v1", &[("https_proxy", &secure_url)]);
    assert!(said.contains("for another host"), "{said}");
    let log = secure_log.lock().unwrap().clone();
    assert!(log[0].starts_with("CONNECT localhost.example:443 HTTP/1.1\r\n"), "{log:?}");
    assert!(log[0].contains("Proxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n"), "{log:?}");
    assert_eq!(log[1], "tunnelled 22", "a TLS handshake and nothing else");

    // Plain HTTP to somewhere else: not without being told so, and then whole, through the proxy.
    let proxies = [("https_proxy", plain_url.as_str()), ("http_proxy", plain_url.as_str())];
    let said = child("registry.example/a/b:v1", &proxies);
    assert!(said.contains("does not speak TLS; plain HTTP is refused"), "{said}");
    let log = std::mem::take(&mut *plain_log.lock().unwrap());
    assert_eq!(log.len(), 2, "{log:?}");
    assert_eq!(log[1], "tunnelled 22", "a11: not one byte of a request");
    let said = child("registry.example/a/b:v1", &[proxies[0], proxies[1], ("COFFERDAM_TEST_PLAIN", "1")]);
    assert!(said.contains("resolved"), "{said}");
    let log = plain_log.lock().unwrap().clone();
    assert!(log[2].starts_with("GET http://registry.example/v2/a/b/manifests/v1 HTTP/1.1\r\n"), "{log:?}");

    // What no_proxy names, and this machine itself, is reached directly.
    plain_log.lock().unwrap().clear();
    for (name, list) in [("registry.invalid/a/b:v1", ".invalid"), ("127.0.0.1:1/a/b:v1", "")] {
        child(name, &[proxies[0], proxies[1], ("no_proxy", list)]);
        assert!(plain_log.lock().unwrap().is_empty(), "{name}");
    }
    let said = child(&plain.name("a/b:v1"), &proxies);
    assert!(said.contains("resolved") && plain_log.lock().unwrap().is_empty());
    let said = child("x.example/y", &[("https_proxy", "socks5://user:hunter2@x")]);
    assert!(said.contains("only http:// proxies"), "{said}");
}
