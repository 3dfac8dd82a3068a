//! The options of whatever talks to registries. What is not given is as the configuration file says.

use std::path::PathBuf;

use cofferdam_executor::PullConfig;

use crate::args::Format;

/// How to talk to registries.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Talk plain HTTP to registries too; loopback ones are tried so anyway
    #[arg(long)]
    plain_http: bool,
    /// File with registry passwords, in the form of docker's config.json
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    authfile: Option<PathBuf>,
    /// Directory with <registry>/hosts.toml files, instead of the usual ones; may be given several times
    #[arg(long, value_name = "DIR")]
    hosts_dir: Vec<PathBuf>,
    /// Mirrors and rules in the form of containers' registries.conf, instead of the usual file
    #[arg(long, value_name = "FILE")]
    registries_conf: Option<PathBuf>,
}

impl RegistryArgs {
    /// These options over those of the configuration file.
    pub(crate) fn over(&self, file: &PullConfig) -> PullConfig {
        let mut config = file.clone();
        config.plain_http |= self.plain_http;
        config.authfile = self.authfile.clone().or(config.authfile);
        if !self.hosts_dir.is_empty() {
            config.hosts_dirs = Some(self.hosts_dir.clone());
        }
        config.registries_conf = self.registries_conf.clone().or(config.registries_conf);
        config
    }
}

/// How to fetch: the same, and what to let in.
#[derive(Debug, clap::Args)]
pub(crate) struct FetchArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Rules about images in the form of containers' policy.json
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Program that must let the image in; may be given several times
    #[arg(long, value_name = "PROGRAM")]
    verifier: Vec<PathBuf>,
    /// Host that foreign layers may be fetched from; may be given several times
    #[arg(long, value_name = "HOST")]
    foreign_host: Vec<String>,
}

impl FetchArgs {
    /// These options over those of the configuration file. What guards a pull is only ever added to.
    pub(crate) fn over(&self, file: &PullConfig) -> PullConfig {
        let mut config = self.registry.over(file);
        config.policy = self.policy.clone().or(config.policy);
        config.verifiers.extend(self.verifier.iter().cloned());
        config.foreign_hosts.extend(self.foreign_host.iter().cloned());
        config
    }
}

/// How pull and push tell what happens.
#[derive(Debug, clap::Args)]
pub(crate) struct TellArgs {
    /// Print nothing but the image's digest
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How to print: what happens is told as JSON too, one event a line
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: Format,
}
