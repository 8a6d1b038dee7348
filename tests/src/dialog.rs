//! A child that is talked to: commands go in as lines, what it says comes out as lines.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, wait};

/// A running child. Killed when dropped.
#[derive(Debug)]
pub struct Dialog {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Dialog {
    /// Starts the command. What it writes for people (its standard error) is appended to `log`.
    ///
    /// # Errors
    /// When the program or the log file cannot be opened.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(log.context("open the log")?);
        let mut child =
            process::spawn_from_keeper(command).with_context(|| format!("start {name}"))?;
        let output = child.stdout.take().context("its output is piped")?;
        let input = child.stdin.take();
        let said = Arc::default();
        let into: Arc<Mutex<Vec<String>>> = Arc::clone(&said);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                into.lock().expect("no holder panics").push(line);
            }
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            input,
            said,
        })
    }

    /// Everything that it has said.
    ///
    /// # Panics
    /// When a holder of the lines panicked.
    #[must_use]
    pub fn said(&self) -> Vec<String> {
        self.said.lock().expect("no holder panics").clone()
    }

    /// Sends it a line.
    ///
    /// # Errors
    /// When it does not read any more.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input was closed")?;
        writeln!(input, "{line}").with_context(|| format!("tell {} to {line}", self.name))
    }

    /// Polls until `look` finds something in what it has said.
    ///
    /// # Errors
    /// When it ends before, or `limit` passes.
    pub fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&[String]) -> Option<T>,
    ) -> Result<T> {
        let mut ended = None;
        let found = wait::until(&format!("{}: {what}", self.name), limit, || {
            // looked at first: what it said before it ended counts
            let status = self.child.try_wait().ok().flatten();
            if let Some(found) = look(&self.said()) {
                return Some(Some(found));
            }
            ended = status;
            ended.map(|_| None)
        });
        match found {
            Ok(Some(found)) => Ok(found),
            Ok(None) => bail!(
                "{} ended before ({what}): {ended:?}, {}",
                self.name,
                self.last_words()
            ),
            Err(late) => Err(late.context(self.last_words())),
        }
    }

    /// Closes its input and waits for its end.
    ///
    /// # Errors
    /// When it ends with a failure, or not in time.
    pub fn close(mut self, limit: Duration) -> Result<Vec<String>> {
        self.input = None;
        self.finish(limit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it ends with a failure, or not in time.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<String>> {
        let ended = wait::until(&format!("{} ends", self.name), limit, || {
            self.child.try_wait().ok().flatten()
        });
        let status = ended.with_context(|| self.last_words())?;
        ensure!(
            status.success(),
            "{} ended with {status}; {}",
            self.name,
            self.last_words()
        );
        Ok(self.said())
    }

    fn last_words(&self) -> String {
        let said = self.said();
        let last = &said[said.len().saturating_sub(10)..];
        format!("it said {} lines, the last: {last:?}", said.len())
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _gone = self.child.wait();
    }
}
