//! `cofferdam pull`.

use std::path::PathBuf;
use std::process::ExitCode;

use cofferdam_executor::{ClientOptions, CredentialSource, Executor, ImageRequest, PlainHttp, PullWhen};

use super::Outcome;
use crate::failure::Failure;
use crate::progress::Progress;

/// How to talk to registries.
#[derive(Debug, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Talk plain HTTP to registries too; loopback ones are tried so anyway
    #[arg(long)]
    plain_http: bool,
    /// File with registry passwords, in the form of docker's config.json
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    authfile: Option<PathBuf>,
}

impl RegistryArgs {
    pub(crate) fn client(&self) -> Result<ClientOptions, Failure> {
        let mut client = ClientOptions::default();
        if self.plain_http {
            client.plain_http = PlainHttp::Allowed;
        }
        if let Some(path) = &self.authfile {
            client.credentials = CredentialSource::File(path.clone());
        }
        Ok(client)
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Print nothing but the image's digest
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The image
    image: String,
}

pub(crate) async fn run(args: Args, executor: &Executor) -> Outcome {
    let request = ImageRequest {
        when: PullWhen::Always,
        platform: args.platform.clone(),
        client: args.registry.client()?,
        ..ImageRequest::new(args.image.clone())
    };
    let progress = Progress::new(args.quiet);
    let image = executor.image(request, move |event| progress.tell(&event)).await?;
    println!("{}", image.digest);
    Ok(ExitCode::SUCCESS)
}
