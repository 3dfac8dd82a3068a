//! `cofferdam network`.

use std::net::IpAddr;
use std::process::ExitCode;

use cofferdam_executor::request::network::NetworkRequest;
use cofferdam_executor::{Executor, NetworkDriver, NetworkInfo, NetworkSpec};
use serde_json::Value;

use super::{Outcome, for_each, print_json};
use crate::args::Format;
use crate::failure::Failure;
use crate::table::Table;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List them
    #[command(visible_alias = "list")]
    Ls {
        /// How to print: a table for people, or JSON for programs
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        /// Only names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Print everything that is known of networks
    Inspect {
        /// Networks
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Make one
    Create(Create),
    /// Remove networks that were made with create
    #[command(visible_alias = "remove")]
    Rm {
        /// Take them away from tasks that use them
        #[arg(short, long)]
        force: bool,
        /// Networks
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove every network that was made with create and that no task uses
    Prune {
        /// Do not ask; nobody is asked here
        #[arg(short, long)]
        force: bool,
    },
    /// Read the configurations anew and tell what is wrong with them
    Reload,
    /// Connect a running task to a network
    Connect(Connect),
    /// Disconnect a running task from a network
    Disconnect {
        /// The network
        network: String,
        /// The task
        task: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// What connects its tasks: bridge, macvlan, ipvlan
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Allocate addresses from this subnet; one a family
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// Gateway, in the order of the subnets
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Lead nowhere but to its tasks and the host
    #[arg(long)]
    internal: bool,
    /// mtu=BYTES, parent=LINK
    #[arg(short, long, value_name = "OPTION=VALUE")]
    opt: Vec<String>,
    /// Its name
    name: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Connect {
    /// Ask for this address
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Ask for this address of version 6
    #[arg(long, value_name = "ADDRESS")]
    ip6: Vec<IpAddr>,
    /// Ask for this hardware address
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Give it another name on this network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// The network, with or without options as run takes them
    network: String,
    /// The task
    task: String,
}

pub(crate) async fn run(verb: &Verb, executor: &Executor) -> Outcome {
    match verb {
        Verb::Ls { format, quiet } => list(executor.networks().await?, *format, *quiet)?,
        Verb::Inspect { names } => return inspect(names, executor).await,
        Verb::Create(args) => {
            executor.create_network(to_spec(args)?).await?;
            println!("{}", args.name);
        }
        Verb::Rm { force, names } => {
            return for_each(names, async |name| {
                executor.remove_network(name, *force).await?;
                println!("{name}");
                Ok(())
            })
            .await;
        }
        Verb::Prune { force: _ } => {
            executor.prune_networks().await?.iter().for_each(|name| println!("{name}"));
        }
        Verb::Reload => return reload(executor).await,
        Verb::Connect(args) => {
            let task = executor.task(&args.task).await?;
            task.connect_network(to_request(args)?).await?;
        }
        Verb::Disconnect { network, task } => executor.task(task).await?.disconnect_network(network).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(networks: Vec<NetworkInfo>, format: Format, quiet: bool) -> Result<(), Failure> {
    let mut table = Table::new(&["NAME", "PLUGINS", "FILE"]);
    for network in networks {
        if quiet {
            println!("{}", network.name);
            continue;
        }
        if format == Format::Json {
            print_json(&network)?;
            continue;
        }
        let file = network.file.map_or_else(|| "(built in)".to_owned(), |file| file.display().to_string());
        table.row([network.name, network.plugins.join(" "), file]);
    }
    if format == Format::Table && !quiet {
        table.print(true);
    }
    Ok(())
}

async fn inspect(names: &[String], executor: &Executor) -> Outcome {
    let mut found: Vec<Value> = Vec::new();
    let code = for_each(names, async |name| {
        let details = executor.network(name).await?;
        found.push(serde_json::to_value(details).map_err(|error| Failure::plain(error.to_string()))?);
        Ok(())
    })
    .await?;
    let text = serde_json::to_string_pretty(&found).map_err(|error| Failure::plain(error.to_string()))?;
    println!("{text}");
    Ok(code)
}

async fn reload(executor: &Executor) -> Outcome {
    let reloaded = executor.reload_networks().await?;
    reloaded.networks.iter().for_each(|network| println!("{}", network.name));
    for problem in &reloaded.problems {
        Failure::plain(problem.as_str()).report();
    }
    Ok(if reloaded.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_spec(args: &Create) -> Result<NetworkSpec, Failure> {
    let mut spec = NetworkSpec {
        name: args.name.clone(),
        driver: args.driver.parse::<NetworkDriver>().map_err(Failure::plain)?,
        subnets: args.subnet.clone(),
        gateways: args.gateway.clone(),
        internal: args.internal,
        ..NetworkSpec::default()
    };
    for option in &args.opt {
        match option.split_once('=') {
            Some(("mtu", bytes)) => {
                let bytes =
                    bytes.parse().map_err(|_| Failure::plain(format!("{bytes:?} is no number of bytes")))?;
                spec.mtu = Some(bytes);
            }
            Some(("parent", link)) => spec.parent = Some(link.to_owned()),
            _ => {
                let message =
                    format!("there is no network option {option:?}; there are mtu=BYTES, parent=LINK");
                return Err(Failure::plain(message));
            }
        }
    }
    Ok(spec)
}

fn to_request(args: &Connect) -> Result<NetworkRequest, Failure> {
    let mut request = NetworkRequest::parse(&args.network)?;
    request.ips.extend(args.ip.iter().chain(&args.ip6));
    if let Some(mac) = &args.mac_address {
        request.mac = Some(cofferdam_executor::request::network::mac(mac).map_err(Failure::plain)?);
    }
    request.aliases.extend(args.alias.iter().cloned());
    Ok(request)
}
