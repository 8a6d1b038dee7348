//! What the two commands have in common: where the configuration is, what `check` found, tables.
//!
//! What is printed, a node's `cli.rs` decides.

use std::fmt;
use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::{ConfigError, Pattern, Problem, shadowed};

/// How long `status` waits for a node.
pub const STATUS_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// How a command ended; its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 0: everything is as it should be.
    Fine,
    /// 1: it works, and found problems.
    Problems,
    /// 2: the command could not do its work.
    Failed,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Fine => Self::SUCCESS,
            Outcome::Problems => Self::from(1),
            Outcome::Failed => Self::from(2),
        }
    }
}

/// Writes to standard output. A reader that went away, as `head` does, is no failure.
///
/// # Errors
/// Any other failure of standard output: a full disk, for one.
pub fn print(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// `--config`
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArg {
    /// Configuration file. Without it the file in /etc/kedge, when there is one, else only the environment
    #[arg(long, short, env = "KEDGE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConfigArg {
    /// The file to read: as given, or the usual one when it exists.
    #[must_use]
    pub fn file(&self, usual: &str) -> Option<PathBuf> {
        self.config
            .clone()
            .or_else(|| Some(PathBuf::from(usual)).filter(|file| file.exists()))
    }

    /// Where the configuration was looked for, when there was no file.
    #[must_use]
    pub fn looked(&self, usual: &str) -> Option<String> {
        self.file(usual).is_none().then(|| {
            format!("no --config FILE, and {usual} does not exist: only the environment was read")
        })
    }
}

/// How `status` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Tables for people.
    Text,
    /// The document as the node tells it.
    Json,
}

/// Options of `status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// Where the configuration names the admin listener
    #[command(flatten)]
    pub config: ConfigArg,
    /// Admin listener of the node, instead of the one in the configuration
    #[arg(long, value_name = "HOST:PORT", value_parser = resolve)]
    pub admin: Option<SocketAddr>,
    /// For people, or as JSON
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// A host and port, or an address and port, as a listener that can be dialled.
fn resolve(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs();
    let found = found.map_err(|error| format!("{error}; accepted: HOST:PORT"))?;
    let all: Vec<_> = found.collect();
    // listeners are on 127.0.0.1 where nothing else is configured, and `localhost` is both
    let first = all.iter().find(|address| address.is_ipv4());
    first
        .or_else(|| all.first())
        .copied()
        .ok_or_else(|| "no such host; accepted: HOST:PORT".to_owned())
}

/// What `check` found.
#[derive(Debug, Default)]
pub struct Findings {
    /// The node would not work.
    pub problems: Vec<String>,
    /// The node would work, for how long or how well is the question.
    pub warnings: Vec<String>,
    /// Facts to compare with what was meant.
    pub notes: Vec<String>,
    /// Keys of the configuration that have problems.
    unsound: Vec<String>,
}

impl Findings {
    /// Takes over what is wrong with the configuration.
    pub fn config(&mut self, error: ConfigError) {
        match error {
            ConfigError::Invalid { problems, .. } => {
                self.problems
                    .extend(problems.iter().map(ToString::to_string));
            }
            ConfigError::Read { .. } | ConfigError::Syntax { .. } => {
                self.problems.push(error.to_string());
            }
        }
    }

    /// Takes over what is wrong within a configuration whose other keys are looked at all the same.
    pub fn settings(&mut self, problems: &[Problem]) {
        self.problems
            .extend(problems.iter().map(ToString::to_string));
        let keys = problems.iter().map(|problem| problem.key.clone());
        self.unsound.extend(keys);
    }

    /// Whether there is no problem with the settings of this key or section: what stands in place of those says nothing.
    #[must_use]
    pub fn is_sound(&self, key: &str) -> bool {
        !self.unsound.iter().any(|unsound| {
            let rest = unsound.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', ':']))
        })
    }

    /// Looks for rules that are never asked. `key` is that of their list, and `but` what such a rule is good for all the same.
    pub fn rules(&mut self, key: &str, rules: &[&Pattern], but: impl Fn(&Pattern) -> &'static str) {
        // what cannot be read is not among them, and the others' places are not the file's
        if !self.is_sound(key) {
            return;
        }
        for (at, earlier) in shadowed(rules) {
            let (rule, before) = (rules[at], rules[earlier]);
            let (but, first) = (but(rule), format!("{key}[{earlier}].match = \"{before}\""));
            let why = if rule == before {
                format!("{first} is the same and comes first")
            } else {
                format!(
                    "{first} comes first and takes every name that it matches; the narrower one belongs before it"
                )
            };
            self.warnings.push(format!(
                "{key}[{at}].match = \"{rule}\": never applies: {why}{but}"
            ));
        }
    }

    /// Looks at certificate, key and authorities, the settings `certificate`, `key` and `ca` of this section; returns what
    /// was read.
    pub fn certificates(
        &mut self,
        section: &str,
        files: &crate::tls::TlsFiles,
        role: crate::tls::Role,
    ) -> Option<crate::tls::Inspection> {
        let told = |remarks: &[crate::tls::Remark]| -> Vec<String> {
            let told = remarks.iter();
            told.map(|remark| format!("{section}.{}: {}", remark.key, remark.message))
                .collect()
        };
        let inspection = match files.inspect(role, crate::time::wall_ms()) {
            Ok(inspection) => inspection,
            Err(error) => {
                let found = told(&files.unreadable());
                self.problems.extend(if found.is_empty() {
                    vec![format!("{section}: {error}")]
                } else {
                    found
                });
                return None;
            }
        };
        self.problems.extend(told(&inspection.problems));
        self.warnings.extend(told(&inspection.warnings));
        let until = crate::time::utc(inspection.certificate.not_after_ms);
        let file = files.certificate.display();
        self.notes
            .push(format!("certificate {file} is valid until {until}"));
        Some(inspection)
    }

    /// Looks whether an address can be listened on. Taken addresses are no problem while the node runs.
    pub fn address(
        &mut self,
        key: &str,
        address: SocketAddr,
        bound: io::Result<()>,
        is_running: bool,
    ) {
        if !self.is_sound(key) {
            return;
        }
        match bound {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_running => {
                let note = format!("{key} is in use: the node is running");
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
            }
            Err(error) => self
                .problems
                .push(format!("{key} = \"{address}\": cannot listen: {error}")),
        }
    }

    /// Looks whether files can be written in a directory, which need not exist yet.
    pub fn writable(&mut self, key: &str, directory: &Path) {
        if !self.is_sound(key) {
            return;
        }
        // the last ancestor of a relative path is empty and means the working directory
        let existing = directory
            .ancestors()
            .map(|ancestor| match ancestor.as_os_str().is_empty() {
                true => Path::new("."),
                false => ancestor,
            })
            .find(|ancestor| ancestor.exists());
        let shown = directory.display();
        let Some(existing) = existing.filter(|existing| existing.is_dir()) else {
            self.problems
                .push(format!("{key}: {shown} is not a directory"));
            return;
        };
        let probe = existing.join(format!(".kedge-check-{}", std::process::id()));
        match std::fs::File::create_new(&probe).and_then(|_| std::fs::remove_file(&probe)) {
            Ok(()) if !directory.exists() => self.notes.push(format!(
                "{key}: {shown} does not exist yet: it is made at start"
            )),
            Ok(()) => {}
            Err(error) => {
                let existing = existing.display();
                self.problems
                    .push(format!("{key}: cannot write in {existing}: {error}"));
            }
        }
    }

    /// [`Outcome::Problems`] when there are any.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        if self.problems.is_empty() {
            Outcome::Fine
        } else {
            Outcome::Problems
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "note     {note}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning  {warning}")?;
        }
        for problem in &self.problems {
            writeln!(f, "problem  {problem}")?;
        }
        match self.problems.len() {
            0 => f.write_str("ok"),
            1 => f.write_str("1 problem"),
            count => write!(f, "{count} problems"),
        }
    }
}

/// Columns under a header: the first to the left, figures to the right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its header.
    #[must_use]
    pub fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|name| (*name).to_owned()).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| cell(row, column).chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, width) in widths.iter().enumerate() {
                let text = cell(row, column);
                if column == 0 {
                    line.push_str(&format!("{text:<width$}"));
                } else {
                    line.push_str(&format!("  {text:>width$}"));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A count with spaces between its thousands: `1 234 567`.
#[must_use]
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&["topic", "accepted"]);
        table.row(["a".to_owned(), thousands(1_234_567)]);
        table.row(["longer.name".to_owned(), thousands(12)]);
        let expected = "topic         accepted\na            1 234 567\nlonger.name         12\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn thousands_are_grouped_from_the_right() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1 000"),
            (1_234_567, "1 234 567"),
        ] {
            assert_eq!(thousands(count), text);
        }
    }

    #[test]
    fn every_certificate_file_that_is_missing_is_named() {
        let mut findings = Findings::default();
        let files = crate::tls::TlsFiles {
            certificate: "no/site.pem".into(),
            key: "no/site-key.pem".into(),
            ca: "no/ca.pem".into(),
        };
        let role = crate::tls::Role::Site;
        assert!(findings.certificates("uplink", &files, role).is_none());
        let text = findings.to_string();
        for file in [
            "uplink.certificate: cannot read no/site.pem",
            "uplink.key: cannot read no/site-key.pem",
            "uplink.ca: cannot read no/ca.pem",
        ] {
            assert!(text.contains(file), "{text}");
        }
    }

    #[test]
    fn a_rule_that_never_applies_is_a_warning_that_names_both() {
        let rules: Vec<Pattern> = ["a.*", "a.b", "a.*", "b"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let rules: Vec<&Pattern> = rules.iter().collect();
        let mut findings = Findings::default();
        findings.rules("topics.rule", &rules, |_| "");
        let [narrow, same] = &findings.warnings[..] else {
            panic!("{findings}");
        };
        let start = "topics.rule[1].match = \"a.b\": never applies: topics.rule[0].match = \"a.*\" comes first";
        assert!(narrow.starts_with(start), "{narrow}");
        let whole = "topics.rule[2].match = \"a.*\": never applies: topics.rule[0].match = \"a.*\" is the same and comes \
                     first";
        assert_eq!(same, whole);
        assert_eq!(findings.outcome(), Outcome::Fine);
    }

    #[test]
    fn an_address_that_is_taken_is_told_with_its_key() {
        let taken = || Err(io::ErrorKind::AddrInUse.into());
        let address = SocketAddr::from(([127, 0, 0, 1], 7443));
        let mut findings = Findings::default();
        // over UDP and over TCP
        for _ in 0..2 {
            findings.address("listen.address", address, taken(), true);
        }
        assert_eq!(findings.outcome(), Outcome::Fine, "{findings}");
        assert_eq!(findings.notes.len(), 1, "{findings}");
        findings.address("listen.address", address, taken(), false);
        let text = findings.to_string();
        let problem = "listen.address = \"127.0.0.1:7443\": cannot listen";
        assert!(text.contains(problem), "{text}");
    }

    #[test]
    fn an_admin_listener_may_be_a_name() {
        assert_eq!(resolve("localhost:9690").unwrap().port(), 9690);
        for text in ["localhost", "127.0.0.1:99999", "no such host:1"] {
            let error = resolve(text).unwrap_err();
            assert!(error.contains("accepted: HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_directory_that_is_a_file_or_not_writable_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let mut findings = Findings::default();
        findings.writable("node.data_dir", &dir.path().join("not/yet/there"));
        findings.writable("node.data_dir", Path::new("no-such-directory-here"));
        assert_eq!(findings.outcome(), Outcome::Fine, "{findings}");
        assert_eq!(findings.notes.len(), 2, "{findings}");
        std::fs::write(dir.path().join("file"), "").unwrap();
        findings.writable("node.data_dir", &dir.path().join("file/data"));
        assert_eq!(findings.outcome(), Outcome::Problems);
        assert!(
            findings.to_string().contains("problem  node.data_dir: "),
            "{findings}"
        );
    }
}
