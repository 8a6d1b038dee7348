//! The command line: what is asked, what is printed, how it exits.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the one place that talks to a terminal"
)]

mod credential;
mod plan;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use shared::admin::fetch;
use shared::cli::{ConfigArg, Findings, Outcome, Output, STATUS_LIMIT, StatusArgs, print};
use shared::time::wall_ms;
use shared::tls::{Remark, Role};
use shared::wire::spoken;

use crate::access::Access;
use crate::app;
use crate::bytes::{BytesArgs, report};
use crate::config::{Config, PathConfig, UplinkConfig};
use crate::status::Status;
use crate::store::RocksStore;
use crate::uplink::look_at_path;

/// The file that is read when none is named and it exists.
const CONFIG_FILE: &str = "/etc/kedge/edge.toml";

/// Keeps a site working when the link is down: takes records, makes them durable, delivers them to the
/// hub exactly once
///
/// Exit codes: 0 fine, 1 problems found or the node failed, 2 the command could not do its work.
#[derive(Debug, Parser)]
#[command(
    name = "edge-node",
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
    /// Run the node until SIGTERM
    Run(ConfigArg),
    /// Check configuration, certificates, directories and ports without starting, and print every problem
    Check(ConfigArg),
    /// Ask a running node how it is, with every topic's delivery ledger
    Status(StatusArgs),
    /// Tell when each topic will be caught up with the link's policy, and what that will cost
    Plan(plan::PlanArgs),
    /// Tell what a recording of your own records would cost on the link, by codec and delay
    Bytes(BytesArgs),
    /// Make what the configuration keeps of a user's password (read from standard input) or a bearer token
    Credential(credential::CredentialArgs),
    /// Print the version
    Version,
}

/// Runs the command line; `run` is the node itself.
pub fn main(run: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => start(&args, run),
        Command::Check(args) => check(&args),
        Command::Status(args) => status(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bytes(args) => bytes(&args),
        Command::Credential(args) => credential::run(&args),
        Command::Version => {
            println!("edge-node {} ({})", env!("CARGO_PKG_VERSION"), spoken());
            Ok(Outcome::Fine)
        }
    };
    let outcome = outcome.unwrap_or_else(|error| {
        eprintln!("edge-node: {error:#}");
        Outcome::Failed
    });
    outcome.into()
}

fn start(
    args: &ConfigArg,
    run: impl FnOnce(Config) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let (file, looked) = (args.file(CONFIG_FILE), args.looked(CONFIG_FILE));
    let config = match looked {
        Some(looked) => Config::load(None).context(looked)?,
        None => Config::load(file.as_deref())?,
    };
    shared::telemetry::init(&config.log)?;
    match run(config) {
        Ok(()) => Ok(Outcome::Fine),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "The node failed");
            Ok(Outcome::Problems)
        }
    }
}

fn check(args: &ConfigArg) -> anyhow::Result<Outcome> {
    let mut findings = Findings::default();
    match Config::examine(args.file(CONFIG_FILE).as_deref()) {
        Ok((config, problems)) => {
            findings.settings(&problems);
            inspect(&config, &mut findings);
        }
        Err(error) => findings.config(error),
    }
    print(format_args!("{findings}\n"))?;
    Ok(findings.outcome())
}

fn inspect(config: &Config, findings: &mut Findings) {
    findings.writable("node.data_dir", &config.node.data_dir);
    let is_held = RocksStore::is_in_use(&app::store_dir(config));
    // the admin port alone could be another node's on this machine
    let is_running = is_held
        && fetch(config.admin.listen, "/status", STATUS_LIMIT)
            .is_ok_and(|(_, text)| serde_json::from_str::<Status>(&text).is_ok());
    if is_held && !is_running {
        findings.problems.push(app::in_use(config));
    }
    let mut bind = |key: &str, address: SocketAddr| {
        findings.address(
            key,
            address,
            TcpListener::bind(address).map(drop),
            is_running,
        );
    };
    bind("admin.listen", config.admin.listen);
    if let Some(kafka) = &config.kafka {
        bind("kafka.listen", kafka.listen);
        for (index, listener) in kafka.listeners.iter().enumerate() {
            bind(&format!("kafka.listener[{index}].listen"), listener.listen);
        }
    }
    if let Some(http) = &config.http {
        bind("http.listen", http.listen);
    }
    if let Some(mqtt) = &config.mqtt {
        bind("mqtt.listen", mqtt.listen);
        for (index, listener) in mqtt.listeners.iter().enumerate() {
            bind(&format!("mqtt.listener[{index}].listen"), listener.listen);
        }
    }
    inspect_access(config, findings);
    let rules = config.topics.rules.iter();
    let rules: Vec<_> = rules.map(|rule| &rule.pattern).collect();
    findings.rules("topics.rule", &rules, |pattern| {
        if pattern.is_exact() {
            " (its topic is created all the same, with the settings of the first)"
        } else {
            ""
        }
    });
    match &config.uplink {
        Some(uplink) => {
            inspect_uplink(uplink, findings);
            if !findings.is_sound("policy") || !findings.is_sound("uplink.path") {
                return;
            }
            let rules = config.rules();
            for window in rules.hidden_windows() {
                findings.warnings.push(format!(
                    "{window}: never holds: at all its times one before it does, and the first counts"
                ));
            }
            for path in rules.closed_paths(wall_ms()) {
                findings.warnings.push(format!(
                    "policy: nothing ever leaves by path `{path}`: no class is allowed by [policy] and by the path's own policy \
                     at the same time; expected: at least one of critical, normal, bulk in both"
                ));
            }
        }
        None => findings
            .warnings
            .push("the uplink is switched off: records queue".to_owned()),
    }
}

/// Users' password files, and listeners' certificates.
fn inspect_access(config: &Config, findings: &mut Findings) {
    if findings.is_sound("access")
        && let Err(error) = Access::new(&config.access)
    {
        findings.problems.push(error.to_string());
    }
    let kafka = config.kafka.iter().flat_map(|kafka| &kafka.listeners);
    let kafka = kafka.map(|listener| &listener.tls).enumerate();
    let mqtt = config.mqtt.iter().flat_map(|mqtt| &mqtt.listeners);
    let mqtt = mqtt.map(|listener| &listener.tls).enumerate();
    let kafka = kafka.map(|(index, tls)| ("kafka", index, tls));
    let mqtt = mqtt.map(|(index, tls)| ("mqtt", index, tls));
    for (section, index, tls) in kafka.chain(mqtt) {
        if let Some(tls) = tls
            && findings.is_sound(&format!("{section}.listener"))
        {
            let line =
                |it: Remark| format!("{section}.listener[{index}].{}: {}", it.key, it.message);
            let (problems, warnings) = tls.inspect(wall_ms());
            findings.problems.extend(problems.into_iter().map(line));
            findings.warnings.extend(warnings.into_iter().map(line));
        }
    }
}

fn inspect_uplink(uplink: &UplinkConfig, findings: &mut Findings) {
    let keys = ["uplink.certificate", "uplink.key", "uplink.ca"];
    if keys.iter().all(|key| findings.is_sound(key))
        && let Some(inspection) = findings.certificates("uplink", &uplink.tls, Role::Site)
    {
        match inspection.certificate.site {
            Some(site) => findings.notes.push(format!("this site is `{site}`")),
            None => {
                let file = uplink.tls.certificate.display();
                findings.problems.push(format!(
                    "uplink.certificate: {file} names no site; expected: a subject alternative name URI \
                     kedge:site:<name>, as `hub-node certs issue` makes it"
                ));
            }
        }
    }
    inspect_paths(&uplink.paths, findings);
    for hub in &uplink.hubs {
        // The site may be offline just now: no problem.
        if let Err(error) = (hub.host.as_str(), hub.port).to_socket_addrs() {
            findings
                .warnings
                .push(format!("hub {hub} is not found at the moment: {error}"));
        }
    }
}

/// A modem may register later, and no node is started anew for it: no problem.
fn inspect_paths(paths: &[PathConfig], findings: &mut Findings) {
    for (index, path) in paths.iter().enumerate() {
        if let Err(error) = look_at_path(path) {
            findings.warnings.push(format!(
                "uplink.path[{index}]: {error}; the path is used once it is there"
            ));
        }
    }
}

fn status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let address = match args.admin {
        Some(address) => address,
        None => Config::load_admin(args.config.file(CONFIG_FILE).as_deref())?.listen,
    };
    let (_, text) = fetch(address, "/status", STATUS_LIMIT)?;
    let status: Status = serde_json::from_str(&text)
        .with_context(|| format!("{address} does not answer as an edge-node does"))?;
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

fn bytes(args: &BytesArgs) -> anyhow::Result<Outcome> {
    let report = report(args)?;
    if let Some(note) = report.note {
        eprintln!("note: {note}");
    }
    print(report.text)?;
    Ok(Outcome::Fine)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::Bind;
    use crate::uplink::policy::Policy;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn check_tells_of_a_path_that_nothing_may_ever_leave_by() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("edge.toml");
        let text = |own: &str| {
            format!(
                "[uplink]\nhubs = [\"127.0.0.1:1\"]\n[policy]\nclasses = [\"critical\"]\n\
                 [[uplink.path]]\nname = \"sat\"\nclasses = [\"{own}\"]\n"
            )
        };
        for (own, is_told) in [("bulk", true), ("critical", false)] {
            std::fs::write(&file, text(own)).unwrap();
            let (config, problems) = Config::examine(Some(&file)).unwrap();
            let mut findings = Findings::default();
            findings.settings(&problems);
            inspect(&config, &mut findings);
            let told = findings.warnings.join("\n");
            assert_eq!(told.contains("by path `sat`"), is_told, "{told}");
        }
    }

    #[test]
    fn check_looks_at_the_rest_of_a_file_that_has_problems() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("edge.toml");
        let text = format!(
            "[node]\ndata_dir = \"/dev/null/kedge\"\n[kafka]\nlisten = \"here\"\n[uplink]\nhubs = [\"hub\"]\n\
             certificate = \"{}\"\n[nonsense]\n[http]\nenabled = false\n[mqtt]\nenabled = false\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n",
            dir.path().join("site.pem").display()
        );
        std::fs::write(&file, text).unwrap();
        let (config, problems) = Config::examine(Some(&file)).unwrap();
        let mut findings = Findings::default();
        findings.settings(&problems);
        inspect(&config, &mut findings);
        let told = findings.problems.join("\n");
        for part in [
            "kafka.listen = \"here\": not an address",
            "uplink.hubs[0] = \"hub\"",
            "nonsense: no such key",
            "node.data_dir: /dev/null/kedge is not a directory",
            "site.pem",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert_eq!(told.matches("kafka.listen").count(), 1, "{told}");
    }

    #[test]
    fn check_warns_of_paths_that_are_not_there() {
        let path = |name: &str, bind| PathConfig {
            name: name.to_owned(),
            bind,
            policy: Policy::default(),
        };
        let paths = [
            path("lo", Bind::Local("127.0.0.1".parse().unwrap())),
            path("cell", Bind::Interface("kedge-none0".to_owned())),
            path("wifi", Bind::Local("192.0.2.77".parse().unwrap())),
        ];
        let mut findings = Findings::default();
        inspect_paths(&paths, &mut findings);
        let [cell, wifi] = &findings.warnings[..] else {
            panic!("{:?}", findings.warnings);
        };
        assert!(
            cell.starts_with("uplink.path[1]: path `cell`, interface `kedge-none0`: "),
            "{cell}"
        );
        assert!(
            wifi.starts_with("uplink.path[2]: path `wifi`, address 192.0.2.77: "),
            "{wifi}"
        );
        assert!(findings.problems.is_empty());
    }
}
