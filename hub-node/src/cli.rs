//! The command line: what is asked, what is printed, how it exits.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the one place that talks to a terminal"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use shared::admin::fetch;
use shared::cli::{ConfigArg, Findings, Outcome, Output, STATUS_LIMIT, StatusArgs, print};
use shared::ids::SiteId;
use shared::tls::Role;
use shared::units::Span;
use shared::wire::spoken;

use crate::certs::{Authority, Written, host};
use crate::config::{Cluster, Config};
use crate::status::Status;

/// The file that is read when none is named and it exists.
const CONFIG_FILE: &str = "/etc/kedge/hub.toml";
/// Ten years: renewing it means a visit to every site's files.
const AUTHORITY_VALIDITY: Span = Span::days(3_650);
/// Long enough for a site that is offline for a season, short enough that renewal stays practised.
const CERTIFICATE_VALIDITY: &str = "825d";

/// Takes what the sites' edge-nodes send and commits it to Kafka exactly once
///
/// Exit codes: 0 fine, 1 problems found or the node failed, 2 the command could not do its work.
#[derive(Debug, Parser)]
#[command(
    name = "hub-node",
    version,
    about,
    long_about,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the hub until SIGTERM
    Run(RunArgs),
    /// Check configuration, certificates and ports without starting, and print every problem
    Check(CheckArgs),
    /// Ask a running hub how it is
    Status(StatusArgs),
    /// Print the version
    Version,
    /// Make certificates for a first deployment
    #[command(subcommand)]
    Certs(CertsCommand),
}

/// How to run.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Where the settings are
    #[command(flatten)]
    pub config: ConfigArg,
    /// Commit to a mock cluster inside this process instead of to Kafka: for demonstrations, nothing
    /// is kept
    #[arg(long)]
    pub embedded_cluster: bool,
}

/// What to check.
#[derive(Debug, Clone, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Ask the Kafka cluster as well, for half a minute at most: brokers, login, the hub's topics, transactional ids. A hub
    /// that runs is not disturbed
    #[arg(long)]
    kafka: bool,
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Make a certificate authority and this hub's certificate
    Init(InitArgs),
    /// Make a site's or another hub's certificate
    Issue(IssueArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Directory for the files; made when missing. Nothing in it is overwritten
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// Name or address by which sites dial this hub; repeat for more
    #[arg(long = "host", value_name = "NAME", required = true, value_parser = host)]
    hosts: Vec<String>,
    /// How long the hub's certificate is valid; the authority's is for ten years
    #[arg(long, value_name = "DURATION", default_value = CERTIFICATE_VALIDITY)]
    valid: Span,
}

#[derive(Debug, Args)]
struct IssueArgs {
    /// Directory of the authority
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// Name of a site; repeat for more
    #[arg(long = "site", value_name = "NAME", required_unless_present = "hosts")]
    sites: Vec<SiteId>,
    /// Instead of a site: name or address of a hub; repeat for more names of the same hub
    #[arg(long = "host", value_name = "NAME", conflicts_with = "sites", value_parser = host)]
    hosts: Vec<String>,
    /// How long the certificates are valid
    #[arg(long, value_name = "DURATION", default_value = CERTIFICATE_VALIDITY)]
    valid: Span,
}

/// Runs the command line; `run` is the node itself.
pub fn main(run: impl FnOnce(Config, Cluster, Option<PathBuf>) -> anyhow::Result<()>) -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => start(&args, run),
        Command::Check(args) => check(&args),
        Command::Status(args) => status(&args),
        Command::Version => {
            println!("hub-node {} ({})", env!("CARGO_PKG_VERSION"), spoken());
            Ok(Outcome::Fine)
        }
        Command::Certs(CertsCommand::Init(args)) => init(&args),
        Command::Certs(CertsCommand::Issue(args)) => issue(&args),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        eprintln!("hub-node: {error:#}");
        Outcome::Failed
    });
    outcome.into()
}

fn start(
    args: &RunArgs,
    run: impl FnOnce(Config, Cluster, Option<PathBuf>) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let cluster = if args.embedded_cluster {
        Cluster::Embedded
    } else {
        Cluster::Configured
    };
    let (file, looked) = (
        args.config.file(CONFIG_FILE),
        args.config.looked(CONFIG_FILE),
    );
    let (config, file) = match looked {
        Some(looked) => (Config::load(None, cluster).context(looked)?, None),
        None => (Config::load(file.as_deref(), cluster)?, file),
    };
    shared::telemetry::init(&config.log)?;
    match run(config, cluster, file) {
        Ok(()) => Ok(Outcome::Fine),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "The node failed");
            Ok(Outcome::Problems)
        }
    }
}

fn check(args: &CheckArgs) -> anyhow::Result<Outcome> {
    let mut findings = Findings::default();
    let file = args.config.file(CONFIG_FILE);
    match Config::examine(file.as_deref(), Cluster::Configured) {
        Ok((config, problems)) => {
            findings.settings(&problems);
            inspect(&config, &mut findings, args.kafka)?;
        }
        Err(error) => findings.config(error),
    }
    print(format_args!("{findings}\n"))?;
    Ok(findings.outcome())
}

fn inspect(config: &Config, findings: &mut Findings, asks_kafka: bool) -> anyhow::Result<()> {
    let is_running = fetch(config.admin.listen, "/status", STATUS_LIMIT)
        .is_ok_and(|(_, text)| serde_json::from_str::<Status>(&text).is_ok());
    let of_kafka = if findings.is_sound("kafka") {
        crate::sink::kafka::check(&config.lanes())
    } else {
        Vec::new()
    };
    let is_usable =
        of_kafka.is_empty() && ["kafka", "commit"].iter().all(|key| findings.is_sound(key));
    for (property, why) in of_kafka {
        let key = property.map_or_else(
            || "kafka".to_owned(),
            |property| format!("kafka.properties.\"{property}\""),
        );
        findings.problems.push(format!("{key}: {why}"));
    }
    match (asks_kafka, is_usable) {
        (false, _) => {}
        (true, true) => ask_kafka(config, findings)?,
        (true, false) => findings
            .notes
            .push("kafka: not asked, its settings have problems".to_owned()),
    }
    if let Some(directory) = &config.listen.codec_dir {
        findings.writable("listen.codec_dir", directory);
    }
    let rules = config.sites.rules.iter();
    let rules: Vec<_> = rules.map(|rule| &rule.pattern).collect();
    findings.rules("sites.rule", &rules, |_| "");
    let keys = ["listen.certificate", "listen.key", "listen.ca"];
    if keys.iter().all(|key| findings.is_sound(key))
        && let Some(inspection) = findings.certificates("listen", &config.listen.tls, Role::Hub)
    {
        let names = inspection.certificate.names.join(", ");
        if names.is_empty() {
            let file = config.listen.tls.certificate.display();
            let message =
                format!("listen.certificate = \"{file}\": names no host, sites will refuse it");
            findings.problems.push(message);
        } else {
            findings
                .notes
                .push(format!("sites can dial this hub as {names}"));
        }
    }
    let bound = std::net::UdpSocket::bind(config.listen.address).map(drop);
    findings.address("listen.address", config.listen.address, bound, is_running);
    let mut bind = |key: &str, address: SocketAddr| {
        let bound = std::net::TcpListener::bind(address).map(drop);
        findings.address(key, address, bound, is_running);
    };
    if config.listen.tcp {
        bind("listen.address", config.listen.address);
    }
    bind("admin.listen", config.admin.listen);
    Ok(())
}

fn ask_kafka(config: &Config, findings: &mut Findings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .context("start a runtime")?;
    let asked = crate::sink::kafka::ask(&config.lanes(), runtime.handle().clone());
    findings.problems.extend(asked.problems);
    findings.notes.extend(asked.notes);
    Ok(())
}

fn status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let address = match args.admin {
        Some(address) => address,
        None => Config::load_admin(args.config.file(CONFIG_FILE).as_deref())?.listen,
    };
    let (_, text) = fetch(address, "/status", STATUS_LIMIT)?;
    let status: Status = serde_json::from_str(&text)
        .with_context(|| format!("{address} does not answer as a hub-node does"))?;
    match args.output {
        Output::Json => print(format_args!("{}\n", text.trim_end()))?,
        Output::Text => print(&status)?,
    }
    Ok(if status.is_fine() {
        Outcome::Fine
    } else {
        Outcome::Problems
    })
}

fn init(args: &InitArgs) -> anyhow::Result<Outcome> {
    let authority = Authority::at(&args.dir);
    let ca = authority.create(AUTHORITY_VALIDITY)?;
    let hub = authority.issue_hub(&args.hosts, args.valid)?;
    let dir = args.dir.display();
    println!("Made in {dir}:");
    print_written("certificate authority", &ca);
    print_written(&format!("hub {}", args.hosts.join(", ")), &hub);
    println!();
    println!("Next:");
    println!(
        "  1. keep {} safe and off the hub: whoever has it can make sites",
        ca.key.display()
    );
    println!("  2. on the hub: ca.pem, hub.pem and hub-key.pem to /etc/kedge");
    println!("  3. for each site: hub-node certs issue --dir {dir} --site NAME");
    Ok(Outcome::Fine)
}

fn issue(args: &IssueArgs) -> anyhow::Result<Outcome> {
    let authority = Authority::at(&args.dir);
    if !args.hosts.is_empty() {
        let hub = authority.issue_another_hub(&args.hosts, args.valid)?;
        print_written(&format!("hub {}", args.hosts.join(", ")), &hub);
        println!();
        println!("Next, on that hub:");
        println!("  {} as /etc/kedge/hub.pem", hub.certificate.display());
        println!("  {} as /etc/kedge/hub-key.pem", hub.key.display());
        println!(
            "  {} as /etc/kedge/ca.pem",
            authority.certificate().display()
        );
        return Ok(Outcome::Fine);
    }
    for site in &args.sites {
        let written = authority.issue_site(site, args.valid)?;
        print_written(&format!("site {site}"), &written);
        println!();
        println!(
            "Next, on the site (readable by the user that edge-node runs as: root:kedge, 640):"
        );
        println!("  {} as /etc/kedge/site.pem", written.certificate.display());
        println!("  {} as /etc/kedge/site-key.pem", written.key.display());
        println!(
            "  {} as /etc/kedge/ca.pem",
            authority.certificate().display()
        );
    }
    Ok(Outcome::Fine)
}

fn print_written(what: &str, written: &Written) {
    println!(
        "{what}, valid until {}",
        shared::time::utc(written.not_after_ms)
    );
    println!("  {}", written.certificate.display());
    println!("  {}", written.key.display());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_and_names_are_checked_where_they_are_given() {
        let parse = |args: &[&str]| {
            Cli::try_parse_from(args)
                .map(drop)
                .map_err(|e| e.to_string())
        };
        assert!(
            parse(&[
                "hub-node", "certs", "issue", "--site", "shop-1", "--valid", "30d"
            ])
            .is_ok()
        );
        let error = parse(&["hub-node", "certs", "issue", "--site", "a/b"]).unwrap_err();
        assert!(error.contains("accepted: letters"), "{error}");
        let error =
            parse(&["hub-node", "certs", "init", "--host", "h", "--valid", "5"]).unwrap_err();
        assert!(error.contains("500ms"), "{error}");
        for command in ["init", "issue"] {
            let host = |name| parse(&["hub-node", "certs", command, "--host", name]);
            assert!(host("hub.example.com").is_ok());
            for name in ["localhost:7443", "bad host", ""] {
                let error = host(name).unwrap_err();
                assert!(
                    error.contains("--host") && error.contains("accepted: an IP address"),
                    "{error}"
                );
            }
        }
    }
}
