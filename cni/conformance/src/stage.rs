//! What a case works with: a host of its own, containers, calls of the plugin, and looks at what they changed.

mod before;
mod ground;
mod strays;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_cni::{Verb, Version};
use cofferdam_linux::namespace::{create_pinned_netns, open_netns, remove_pinned_netns};
use serde_json::Value;

use crate::case::{End, Tried, ensure};
use crate::process::{self, Prepared, Said};
use crate::profile::{Error, Subject};
use crate::snapshot::Snapshot;

pub(crate) use ground::UPLINK;

/// The network unless a case needs two.
pub(crate) const NETWORK: &str = "conformance";
/// How long deletions that the kernel finishes later may take.
const SETTLE: Duration = Duration::from_millis(2500);
const LOOK_AGAIN: Duration = Duration::from_millis(15);
const NEW_IN_1_1_0: [(&str, &[&str]); 2] = [
    ("interfaces", &["mtu", "socketPath", "pciID"]),
    ("routes", &["mtu", "advmss", "priority", "table", "scope"]),
];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The scene of one case. It is on the thread that plays the host.
pub(crate) struct Stage<'a> {
    pub(crate) subject: &'a Subject,
    /// What the plugin claims to speak, oldest first.
    pub(crate) versions: &'a [Version],
    folder: PathBuf,
    containers: Cell<u32>,
    calls: RefCell<Vec<String>>,
    figure: RefCell<String>,
}

/// A container: a network namespace, and what a chained plugin finds in it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) number: u32,
    pub(crate) ifname: String,
    pub(crate) network: String,
    pub(crate) netns: PathBuf,
    /// The result of the plugin before.
    pub(crate) given: Option<Value>,
}

/// A container that the plugin has attached.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) container: Container,
    pub(crate) result: Value,
}

/// A call that differs from the usual one.
#[derive(Debug, Default)]
pub(crate) struct Changes<'a> {
    pub(crate) version: Option<Version>,
    pub(crate) previous: Option<&'a Value>,
    /// Keys of the configuration, put over what is there.
    pub(crate) config: Option<Value>,
    /// Variables; an empty value takes one away.
    pub(crate) environment: Vec<(&'a str, String)>,
    pub(crate) kill_after: Option<Duration>,
}

impl<'a> Stage<'a> {
    /// Sets the stage on a thread of its own, runs `work` there, and takes everything down.
    pub(crate) fn with<T: Send>(
        subject: &'a Subject,
        versions: &'a [Version],
        work: impl FnOnce(&Stage<'a>) -> T + Send,
    ) -> Result<T, Error> {
        let path = ground::choose_folder(subject)?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                ground::enter(&path)?;
                let stage = Stage {
                    subject,
                    versions,
                    folder: path,
                    containers: Cell::new(0),
                    calls: RefCell::default(),
                    figure: RefCell::default(),
                };
                stage.set_up()?;
                let done = work(&stage);
                strays::end_all();
                Ok(done)
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Links of the host, and what the profile wants.
    fn set_up(&self) -> Result<(), Error> {
        std::fs::create_dir(self.data()).map_err(Error::stage("make the data folder"))?;
        ground::set_up_links(&self.folder)?;
        let Some(lines) = &self.subject.profile.setup else { return Ok(()) };
        self.shell(lines, &[]).map_err(|how| Error::Stage {
            operation: "run the profile's setup".into(),
            source: std::io::Error::other(how),
        })
    }

    /// Where `@DATA@` leads.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The newest version that the plugin claims.
    pub(crate) fn newest(&self) -> Version {
        self.versions.last().copied().unwrap_or(Version::NEWEST)
    }

    pub(crate) fn has_check(&self) -> bool {
        self.newest() >= Version::V0_4_0
    }

    /// A new container on the usual network.
    pub(crate) fn container(&self) -> Result<Container, End> {
        let number = self.containers.get() + 1;
        self.containers.set(number);
        let id = format!("container-{number}");
        let netns = self.folder.join(&id);
        let made = create_pinned_netns(&netns).and_then(|()| open_netns(&netns));
        let made = made.map_err(|errno| End::Failed(format!("cannot make a namespace: {errno}")))?;
        let ifname = self.subject.profile.ifname.clone();
        let mut container = Container { id, number, ifname, network: NETWORK.into(), netns, given: None };
        ground::up(&made, "lo").map_err(|error| End::Failed(error.to_string()))?;
        if self.subject.profile.chained {
            self.give(&mut container, number)?;
        }
        Ok(container)
    }

    /// Makes what the plugins before this one would have made: those of the chain that it comes after, or else an interface
    /// on a bridge, with an address and a default route.
    pub(crate) fn give(&self, container: &mut Container, host_part: u32) -> Tried {
        if self.subject.after.is_some() {
            container.given = Some(self.attach_before(container)?);
            return Ok(());
        }
        let result = ground::make_interface(container, host_part);
        container.given =
            Some(result.map_err(|error| End::Failed(format!("cannot make an interface: {error}")))?);
        Ok(())
    }

    /// The same container, for a second interface of it.
    pub(crate) fn again(&self, container: &Container) -> Container {
        let Container { id, number, ifname, network, netns, given } = container;
        Container {
            id: id.clone(),
            number: *number,
            ifname: ifname.clone(),
            network: network.clone(),
            netns: netns.clone(),
            given: given.clone(),
        }
    }

    /// Gives a container's interface the address that the result of the plugin before says it has.
    pub(crate) fn readdress(&self, container: &Container) -> Tried {
        let given = |key: &str| {
            let given = container.given.as_ref().and_then(|given| given["ips"][0][key].as_str());
            given.unwrap_or_default().to_owned()
        };
        let variables = [
            ("NETNS", container.netns.display().to_string()),
            ("IF", container.ifname.clone()),
            ("ADDRESS", given("address")),
            ("GATEWAY", given("gateway")),
        ];
        let lines = "nsenter --net=$NETNS ip address flush dev $IF scope global\n\
                     nsenter --net=$NETNS ip address add $ADDRESS dev $IF\n\
                     [ -z \"$GATEWAY\" ] || nsenter --net=$NETNS ip route replace default via $GATEWAY";
        self.shell(lines, &variables).map_err(|how| End::Failed(format!("cannot give an address: {how}")))
    }

    /// Asks for the versions: no standard input, and dummies for what old libraries insist on.
    pub(crate) fn version(&self) -> Said {
        let mut environment = self.environment("VERSION");
        for (name, value) in [("CNI_CONTAINERID", "none"), ("CNI_NETNS", "none"), ("CNI_IFNAME", "none")] {
            environment.push((name.into(), value.into()));
        }
        self.prepare(environment, Vec::new(), None).run()
    }

    /// Calls the plugin about a container.
    pub(crate) fn call(&self, verb: Verb, container: &Container, changes: Changes<'_>) -> Said {
        self.prepared(verb, container, changes).run()
    }

    /// The same, to be run later, on any thread of the stage.
    pub(crate) fn prepared(&self, verb: Verb, container: &Container, changes: Changes<'_>) -> Prepared<'_> {
        let config = self.config(verb, container, &changes);
        self.prepare(self.variables(verb, container, &changes), config.to_string().into(), changes.kill_after)
    }

    /// Calls it with an input that is given byte by byte.
    pub(crate) fn call_raw(&self, verb: Verb, container: &Container, input: &[u8]) -> Said {
        self.prepare(self.variables(verb, container, &Changes::default()), input.into(), None).run()
    }

    fn variables(&self, verb: Verb, container: &Container, changes: &Changes<'_>) -> Vec<(String, String)> {
        let mut environment = self.environment(&verb.to_string());
        if !matches!(verb, Verb::Gc | Verb::Status) {
            environment.push(("CNI_CONTAINERID".into(), container.id.clone()));
            environment.push(("CNI_IFNAME".into(), container.ifname.clone()));
            environment.push(("CNI_NETNS".into(), container.netns.display().to_string()));
            environment.push(("CNI_ARGS".into(), self.subject.args.clone()));
        }
        for (name, value) in &changes.environment {
            environment.retain(|(other, _)| other != name);
            if !value.is_empty() {
                environment.push(((*name).into(), value.clone()));
            }
        }
        environment.retain(|(_, value)| !value.is_empty());
        environment
    }

    fn environment(&self, verb: &str) -> Vec<(String, String)> {
        let path = format!("{}:{}", self.subject.path(), self.folder.join("bin").display());
        vec![("PATH".into(), PATH.into()), ("CNI_COMMAND".into(), verb.into()), ("CNI_PATH".into(), path)]
    }

    /// The input of a call.
    pub(crate) fn config(&self, verb: Verb, container: &Container, changes: &Changes<'_>) -> Value {
        let version = changes.version.unwrap_or_else(|| self.newest());
        let mut config = self.filled(&self.subject.profile.config, container);
        config["cniVersion"] = version.to_string().into();
        config["name"] = container.network.as_str().into();
        if let Some(given) = &self.subject.profile.runtime_config
            && !matches!(verb, Verb::Gc | Verb::Status)
        {
            config["runtimeConfig"] = self.filled(given, container);
        }
        let given = if verb == Verb::Add { container.given.as_ref() } else { None };
        if let Some(previous) = changes.previous.or(given)
            && (verb == Verb::Add || version >= Version::V0_4_0)
        {
            config["prevResult"] = in_version(previous, version);
        }
        if let (Some(Value::Object(changed)), Value::Object(config)) = (&changes.config, &mut config) {
            config.extend(changed.clone());
        }
        config
    }

    fn filled(&self, template: &Value, container: &Container) -> Value {
        serde_json::from_str(&self.filled_text(&template.to_string(), container)).unwrap_or(Value::Null)
    }

    fn filled_text(&self, template: &str, container: &Container) -> String {
        let network = if container.network == NETWORK { "0" } else { "1" };
        template
            .replace("@DATA@", &self.data().display().to_string())
            .replace("@MASTER@", UPLINK)
            .replace("@NET@", network)
            .replace("\"@PORT@\"", &(20_000 + container.number).to_string())
    }

    fn prepare(
        &self,
        environment: Vec<(String, String)>,
        input: Vec<u8>,
        kill_after: Option<Duration>,
    ) -> Prepared<'_> {
        let program = &self.subject.program;
        self.calls.borrow_mut().push(process::replay(program, &environment, &input));
        let limit = self.subject.limit;
        Prepared { program, arguments: Vec::new(), environment, input, limit, kill_after, is_watched: false }
    }

    /// ADD, which has to work.
    pub(crate) fn add(&self, container: Container) -> Result<Attached, End> {
        let said = self.call(Verb::Add, &container, Changes::default());
        ensure(said.succeeded(), || said.text())?;
        let result = said.value();
        ensure(result.is_object(), || format!("the answer is no JSON object: {}", said.text()))?;
        Ok(Attached { container, result })
    }

    /// A new container, attached.
    pub(crate) fn attach(&self) -> Result<Attached, End> {
        self.add(self.container()?)
    }

    /// CHECK.
    pub(crate) fn check(&self, attached: &Attached) -> Said {
        let previous = Some(&attached.result);
        self.call(Verb::Check, &attached.container, Changes { previous, ..Changes::default() })
    }

    /// DEL.
    pub(crate) fn del(&self, attached: &Attached) -> Said {
        let previous = Some(&attached.result);
        self.call(Verb::Del, &attached.container, Changes { previous, ..Changes::default() })
    }

    /// DEL, which has to work.
    pub(crate) fn detach(&self, attached: &Attached) -> Tried {
        let said = self.del(attached);
        ensure(said.succeeded(), || said.text())
    }

    /// CHECK, which has to pass where there is one.
    pub(crate) fn ensure_check(&self, attached: &Attached, when: &str) -> Tried {
        if !self.has_check() {
            return Ok(());
        }
        let said = self.check(attached);
        ensure(said.succeeded(), || format!("{when}: {}", said.text()))
    }

    /// Attaches and detaches once, so that what the plugin shares among attachments is there, and looks at the host.
    pub(crate) fn warmed_up(&self) -> Result<Snapshot, End> {
        let attached = self.attach()?;
        self.detach(&attached)?;
        self.end(attached.container);
        Ok(self.look())
    }

    /// Looks at the host.
    pub(crate) fn look(&self) -> Snapshot {
        Snapshot::take(&[self.data(), self.folder.join("written")])
    }

    /// Looks at a container.
    pub(crate) fn look_inside(&self, container: &Container) -> Snapshot {
        Snapshot::take_inside(&container.netns)
    }

    /// Waits until the host is as it was, and fails with what is left.
    pub(crate) fn ensure_as_before(&self, before: &Snapshot, when: &str) -> Tried {
        self.ensure_same(before, when, || self.look())
    }

    /// The same of a container.
    pub(crate) fn ensure_inside_as_before(
        &self,
        container: &Container,
        before: &Snapshot,
        when: &str,
    ) -> Tried {
        self.ensure_same(before, when, || self.look_inside(container))
    }

    fn ensure_same(&self, before: &Snapshot, when: &str, look: impl Fn() -> Snapshot) -> Tried {
        let deadline = Instant::now() + SETTLE;
        loop {
            let differences = before.differences(&look());
            if differences.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(End::Failed(format!("{when}:\n{}", differences.join("\n"))));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Ends a container: its namespace goes, with all that is in it, and what was made for it.
    pub(crate) fn end(&self, container: Container) {
        self.lose(&container);
    }

    /// Takes a container's namespace away, and with it what the plugins before have made.
    pub(crate) fn lose(&self, container: &Container) {
        let _ = remove_pinned_netns(&container.netns);
        self.detach_before(container);
    }

    /// The processes of this case that live on, by name.
    pub(crate) fn strays(&self) -> Vec<String> {
        strays::find().into_iter().map(|stray| stray.name).collect()
    }

    /// Takes away the rules of the whole host, which are made again by whoever needs them.
    pub(crate) fn forget_shared(&self) {
        let _ = self.shell("nft flush ruleset", &[]);
    }

    /// Runs shell lines in the host's namespace; an error is what they said.
    pub(crate) fn shell(&self, lines: &str, variables: &[(&str, String)]) -> Result<(), String> {
        let output = Command::new("/bin/sh")
            .args(["-e", "-c", lines])
            .env("PATH", PATH)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// Puts a program beside the plugins that the plugin may call.
    pub(crate) fn place_plugin(&self, name: &str, script: &str) -> Tried {
        use std::os::unix::fs::PermissionsExt;
        let bin = self.folder.join("bin");
        let place = || {
            std::fs::create_dir_all(&bin)?;
            std::fs::write(bin.join(name), format!("#!/bin/sh\n{script}"))?;
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755))
        };
        place().map_err(|error| End::Failed(format!("cannot write {name}: {error}")))
    }

    /// Notes a figure for the report.
    pub(crate) fn note(&self, figure: String) {
        self.figure.replace(figure);
    }

    pub(crate) fn figure(&self) -> String {
        self.figure.borrow().clone()
    }

    pub(crate) fn replay(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }
}

/// Our result in a version: addresses carry their family below 1.0.0, and what 1.1.0 has brought is missing before.
pub(crate) fn in_version(result: &Value, version: Version) -> Value {
    let mut result = result.clone();
    result["cniVersion"] = version.to_string().into();
    if version < Version::V1_1_0 {
        for (list, keys) in NEW_IN_1_1_0 {
            for entry in result[list].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                entry.retain(|key, _| !keys.contains(&key.as_str()));
            }
        }
    }
    for ip in result["ips"].as_array_mut().into_iter().flatten() {
        let is_v6 = ip["address"].as_str().is_some_and(|address| address.contains(':'));
        match ip.as_object_mut() {
            Some(ip) if version < Version::V1_0_0 => {
                ip.insert("version".into(), if is_v6 { "6" } else { "4" }.into());
            }
            Some(ip) => drop(ip.remove("version")),
            None => {}
        }
    }
    result
}
