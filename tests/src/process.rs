//! Child processes that die with the tests, and the signals that the faults are made of.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result, bail};

use crate::{paths, wait};

type Spawn = (Command, mpsc::SyncSender<io::Result<Child>>);

/// A running child with its output in a log file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command; its output is appended to `log`.
    ///
    /// # Errors
    /// When the program or the log file cannot be opened.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = open_log(log)?;
        let err = out.try_clone().context("share the log")?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn_from_keeper(command).with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        signal(self.id(), libc::SIGKILL);
        let _gone = self.child.wait();
    }

    /// SIGSTOP: it holds its sockets and does nothing.
    pub fn freeze(&self) {
        signal(self.id(), libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        signal(self.id(), libc::SIGCONT);
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it is still running after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        signal(self.id(), libc::SIGTERM);
        let what = format!("{} ends after SIGTERM", self.name);
        wait::until(&what, limit, || self.exited())
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Fails with the end of its log when it is not running.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.exited() {
            bail!(
                "{} ended with {status}; its log ends:\n{}",
                self.name,
                self.log_tail()
            );
        }
        Ok(())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Resident memory, bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it has had resident, bytes.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_default() * 1024
    }
}

/// Lets this process, and those that it starts from now on, open so many files.
///
/// # Errors
/// When the machine's limit is lower.
#[expect(unsafe_code, reason = "std has no resource limits")]
pub fn allow_open_files(count: u64) -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls read or write `limit` only.
    let outcome = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_cur.max(count);
        limit.rlim_max = limit.rlim_max.max(limit.rlim_cur);
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    if outcome != 0 {
        let error = io::Error::last_os_error();
        bail!("open files cannot be raised to {count}: {error}");
    }
    Ok(())
}

/// What a process has used of the processor, by itself and for it in the kernel.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    // "pid (name) state …": the 14th and the 15th field, in hundredths of a second
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let used = fields.split_whitespace().skip(11).take(2);
    Duration::from_millis(
        used.filter_map(|used| used.parse::<u64>().ok())
            .sum::<u64>()
            * 10,
    )
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until a node is ready.
///
/// # Errors
/// When it ends (with the end of its log) or takes longer than `limit`.
pub fn wait_ready(
    process: &mut Process,
    limit: Duration,
    mut is_ready: impl FnMut() -> bool,
) -> Result<()> {
    let what = format!("{} is ready", process.name);
    let mut ended = None;
    let ready = wait::until_true(&what, limit, || {
        ended = process.check_alive().err();
        ended.is_some() || is_ready()
    });
    if let Some(ended) = ended {
        bail!(ended);
    }
    ready.map_err(|late| late.context(process.log_tail()))
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it fails or takes longer than `limit`; the message holds what it wrote.
pub fn run(name: &str, command: Command, limit: Duration) -> Result<String> {
    run_to(0, name, command, limit)
}

/// The same of a command that is to exit with this status.
///
/// # Errors
/// When it exits with another or takes longer than `limit`; the message holds what it wrote.
pub fn run_to(expected: i32, name: &str, mut command: Command, limit: Duration) -> Result<String> {
    let dir = paths::scratch("output")?;
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    command.stdout(open_log(&out)?).stderr(open_log(&err)?);
    let mut child = spawn_from_keeper(command).with_context(|| format!("start {name}"))?;
    let ended = wait::until(name, limit, || child.try_wait().ok().flatten());
    if ended.is_err() {
        signal(child.id(), libc::SIGKILL);
        let _gone = child.wait();
    }
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let (out, err) = (read(&out), read(&err));
    match ended {
        Ok(status) if status.code() == Some(expected) => Ok(out),
        Ok(status) => bail!("{name} ended with {status}\n{out}\n{err}"),
        Err(late) => bail!("{late}\n{out}\n{err}"),
    }
}

/// Every child is started by one thread that lives as long as the tests: the kernel sends a child its
/// parent-death signal when the starting *thread* ends.
pub(crate) fn spawn_from_keeper(mut command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<Mutex<mpsc::Sender<Spawn>>> = OnceLock::new();
    die_with_parent(&mut command);
    let keeper = KEEPER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Spawn>();
        thread::spawn(move || {
            for (mut command, reply) in requests {
                let _asker_gone = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let sent = keeper
        .lock()
        .expect("no holder panics")
        .send((command, reply));
    sent.map_err(|_| io::Error::other("the keeper ended"))?;
    answer
        .recv()
        .map_err(|_| io::Error::other("the keeper ended"))?
}

#[expect(unsafe_code, reason = "prctl between fork and exec")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

#[expect(unsafe_code, reason = "std can only send SIGKILL")]
fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("a process id fits i32");
    // SAFETY: kill has no memory effects; the child is ours and not reaped, so the id is its.
    unsafe {
        libc::kill(pid, signal);
    }
}
