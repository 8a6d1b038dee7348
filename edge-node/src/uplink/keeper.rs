//! Carries out what the [`Steward`] decides: reads the clocks, the counters and the files, sets the rates and
//! the fences, and tells everybody what holds.
//!
//! Every second, at the moment when another window begins, when a fence is met and when the hub pushes a
//! policy. The configuration file is looked at every few seconds; of it only `[policy]` and the policies of
//! the paths are taken while the node runs. A file that cannot be used changes nothing and is told in the
//! status and, once, in the log.
//!
//! Files in the data directory: `uplink.counts` (see [`super::meter`]) and `hub-policy.toml`, what the hub
//! pushed last: it holds from the start, also before the hub is reached. When `uplink.counts` cannot be
//! written the node goes on, for a full disk is emptied by sending; the status says so, and a kill may then
//! lose counts. A damaged file is set aside, and its allowances count as used up until their next periods: the
//! status says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shared::class::ClassShares;
use shared::config::values;
use shared::crashsafe::{self, Access};
use shared::policy;
use shared::units::BitRate;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::UplinkStats;
use super::meter::Kept;
use super::policy::{Clocks, Decision, Policy, Seen};
use super::shaper::{Shaper, Traffic};
use super::steward::{Draft, FromHub, Rules, Standing, Steward};
use crate::config::Config;

/// Windows and allowances are looked at so often.
const TICK: Duration = Duration::from_secs(1);
/// And the configuration file, however often the fence of an allowance is met.
const FILE_EVERY: Duration = Duration::from_secs(3);
/// Whether the hub's policy leaves something beside the file's: clocks that change move the windows of two zones.
const HUB_EVERY: Duration = Duration::from_secs(60);
/// Policies that the hub pushed and nobody has read; the last one counts.
const PUSHED: usize = 4;
/// Larger files of counts are none of ours.
const MAX_COUNTS: u64 = 1 << 20;

/// After the wish to stop, for saying goodbye.
const LAST_WORDS: Duration = Duration::from_secs(3);

const NO_CLASS: &str = "the hub's policy and the configuration file's let no class be sent by any path at any time, and \
                        the site would not hear that it is withdrawn; accepted: a class that both allow at the same time";

const COUNTS: &str = "uplink.counts";
const HUB_POLICY: &str = "hub-policy.toml";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What holds, for everybody who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// For each path, the preferred first.
    pub paths: Vec<PathView>,
    /// How the allowances stand.
    pub allowances: Vec<Standing>,
    /// Whose policy it is: "file", "file and hub" or "hub".
    pub source: &'static str,
    /// What keeps a new policy from holding, or counts from being kept.
    pub problems: Vec<String>,
    /// The policies that hold: the site's and the hub's, as far as they are used, and those of the paths.
    pub rules: InForce,
    /// How the classes share a full link.
    pub shares: ClassShares,
}

/// The policies that hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InForce {
    /// Over all paths, with whose it is: "site" or "hub".
    pub over_all: Vec<(&'static str, Policy)>,
    /// For each path by name, the preferred first.
    pub paths: Vec<(String, Policy)>,
}

impl InForce {
    /// Of these rules and what the hub pushed, when that is used.
    #[must_use]
    pub fn new(rules: &Rules, hub: Option<&Policy>) -> Self {
        let hub = hub.filter(|_| rules.from_hub != FromHub::Ignore);
        let site = (hub.is_none() || rules.from_hub == FromHub::Tighten).then_some(&rules.site);
        let over_all = site.map(|policy| ("site", policy)).into_iter();
        let over_all = over_all.chain(hub.map(|policy| ("hub", policy)));
        Self {
            over_all: over_all.map(|(of, policy)| (of, policy.clone())).collect(),
            paths: rules.paths.clone(),
        }
    }
}

/// What holds on a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathView {
    /// As configured.
    pub name: String,
    /// What may leave, and why.
    pub decision: Decision,
    /// Bytes since the counts began.
    pub traffic: Traffic,
    /// Both ways in a second, of late.
    pub bytes_per_sec: u64,
    /// The most of that in the last minutes while the link was the limit; 0: it was not.
    pub best_bytes_per_sec: u64,
}

/// How the classes share a full link, with this configuration.
fn shares_of(config: &Config) -> ClassShares {
    let uplink = config.uplink.as_ref();
    uplink.map_or_else(ClassShares::default, |uplink| uplink.classes.shares)
}

/// What the hub pushed: the text of a policy that can be used, or what is wrong with one that cannot.
type Pushed = Result<String, String>;

/// What others have of the keeper.
#[derive(Debug, Clone)]
pub struct Policies {
    view: watch::Receiver<Arc<View>>,
    pushed: mpsc::Sender<Pushed>,
    shapers: Arc<[Arc<Shaper>]>,
}

impl Policies {
    /// The shaper of a path: for every socket of it. A path that there is not has the first one's.
    #[must_use]
    pub fn shaper(&self, path: usize) -> &Arc<Shaper> {
        self.shapers.get(path).unwrap_or(&self.shapers[0])
    }

    /// Ends when records of some class may leave by a path; says in the status what it waits for.
    pub(super) async fn allowed(&self, path: usize, stats: &UplinkStats) {
        let mut view = self.view.clone();
        loop {
            let decision = decision(&view.borrow_and_update(), path);
            if !decision.is_stopped() {
                return;
            }
            stats.closed(&format!(
                "the policy lets nothing leave: {}",
                decision.reason
            ));
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends with the reason when nothing may leave by a path any more.
    pub(super) fn stopped(&self, path: usize) -> impl Future<Output = String> + Send + use<> {
        let mut view = self.view.clone();
        async move {
            let found = view
                .wait_for(|view| decision(view, path).is_stopped())
                .await;
            let reason = found.map(|view| decision(&view, path).reason);
            match reason {
                Ok(reason) => reason,
                // the keeper goes last
                Err(_closed) => std::future::pending().await,
            }
        }
    }

    /// What holds.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// What holds, and news of it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// What holds on a path; everything, when there is none of that number.
    #[must_use]
    pub fn decision(&self, path: usize) -> Decision {
        decision(&self.view.borrow(), path)
    }

    /// Takes a policy that the hub pushed: the text of a `[policy]` section, an empty one to withdraw it.
    ///
    /// # Errors
    /// What is wrong with it, in words; the policies stay as they are.
    pub fn push(&self, text: String) -> Result<(), String> {
        let checked = policy::pushed(&text).map_err(|error| error.to_string());
        let pushed = checked.map(|_policy| text);
        // a hub that pushes faster than a site can read is told to come again
        let taken = self.pushed.try_send(pushed.clone());
        pushed?;
        taken.map_err(|_| "earlier policies are not read yet".to_owned())
    }
}

fn decision(view: &View, path: usize) -> Decision {
    let path = view.paths.get(path);
    path.map_or_else(Decision::free, |path| path.decision.clone())
}

/// Held by whoever sends: until it is gone the last words may still leave and are counted.
#[derive(Debug, Clone)]
pub struct InUse {
    _released: mpsc::Sender<()>,
}

/// The task that keeps the policies.
#[derive(Debug)]
pub struct Keeper {
    steward: Steward,
    rules: Rules,
    shares: ClassShares,
    shapers: Arc<[Arc<Shaper>]>,
    files: Files,
    boot_id: u128,
    view: watch::Sender<Arc<View>>,
    pushed: mpsc::Receiver<Pushed>,
    released: mpsc::Receiver<()>,
    /// What the hub pushed last and was taken, whether it holds beside the file's or not.
    hub: Option<Policy>,
    has_hub_policy: bool,
    file_problem: Option<String>,
    hub_problem: Option<String>,
    unused_problem: Option<String>,
    counts_problem: Option<String>,
    write_problem: Option<String>,
    clock_problem: Option<String>,
}

#[derive(Debug)]
struct Files {
    counts: PathBuf,
    hub_policy: PathBuf,
    config: Option<PathBuf>,
    /// What tells the configuration from others, as far as it was read.
    changed: Option<Stamp>,
    /// What it said at the start of all that is not read again.
    settings: BTreeMap<String, String>,
    /// Those that say something else now, as far as that was logged.
    unused: Vec<String>,
}

/// Tells a file's contents apart, also from those of another file that took its place with an older date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    /// Seconds and nanoseconds of the last change of anything, which nobody can set.
    changed: (i64, i64),
    inode: u64,
    len: u64,
}

impl Keeper {
    /// Reads what was kept and decides for the first time. Blocks for a moment.
    #[must_use]
    pub fn new(config: &Config) -> (Self, Policies, InUse) {
        let files = Files::new(config);
        let boot_id = boot_id();
        let now = clocks(boot_id);
        let rules = config.rules();
        let read = files.read_counts();
        let is_lost = read.is_none();
        let mut steward = Steward::new(rules.clone(), &read.unwrap_or_default(), now);
        let (hub, hub_problem) = match files.read_hub_policy() {
            Ok(hub) => (hub, None),
            Err(error) => {
                warn!(%error, "Policy that the hub pushed earlier cannot be used");
                let text = format!("what the hub pushed earlier cannot be used: {error}");
                (None, Some(text))
            }
        };
        let used = usable(hub.as_ref(), &rules, now.wall_ms);
        let unused_problem = used.as_ref().err().cloned();
        let used = used.ok().flatten();
        let has_hub_policy = used.is_some();
        steward.set_hub(used, now);
        if is_lost {
            steward.handle_lost_counts();
            files.set_counts_aside(&steward.last_draft().kept);
        }
        let shapers: Arc<[Arc<Shaper>]> =
            steward.names().map(|_| Arc::new(Shaper::new())).collect();
        // nothing leaves before the first look
        shapers.iter().for_each(|shaper| shaper.set_fence(0));
        let (view, watched) = watch::channel(Arc::new(View::default()));
        let (push, pushed) = mpsc::channel(PUSHED);
        let (release, released) = mpsc::channel(1);
        let policies = Policies {
            view: watched,
            pushed: push,
            shapers: Arc::clone(&shapers),
        };
        let mut keeper = Self {
            steward,
            rules,
            shares: shares_of(config),
            shapers,
            files,
            boot_id,
            view,
            pushed,
            released,
            hub,
            has_hub_policy,
            file_problem: None,
            hub_problem,
            unused_problem,
            counts_problem: None,
            write_problem: None,
            clock_problem: None,
        };
        if is_lost && keeper.steward.lost().is_empty() {
            keeper.counts_problem = Some("the counts were damaged and begin anew".to_owned());
        }
        keeper.publish(now);
        (keeper, policies, InUse { _released: release })
    }

    /// Runs until stopped and until nobody sends any more, then writes the exact counts.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut files = tokio::time::interval(FILE_EVERY);
        files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // it was just read
        files.reset();
        let mut looks = tokio::time::interval(HUB_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let over = async { (stop.cancelled().await, tokio::time::sleep(LAST_WORDS).await) };
        let mut over = pin!(over);
        loop {
            let wait = self.look().await;
            tokio::select! {
                biased;
                _ = &mut over => break,
                // nothing is ever sent on it
                _ = self.released.recv(), if stop.is_cancelled() => break,
                Some(pushed) = self.pushed.recv() => self.take_pushed(pushed).await,
                _ = files.tick() => self.reload().await,
                _ = looks.tick() => self.look_at_hub(clocks(self.boot_id)),
                path = met(&self.shapers) => {
                    self.count();
                    self.steward.fence_met(path);
                }
                // the wish to stop is noticed by the next branch of the next round
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.shapers.iter().for_each(|shaper| shaper.set_fence(0));
        self.count();
        let draft = self.steward.last_draft();
        self.write(draft).await;
    }

    /// One look at everything; how long until the next.
    async fn look(&mut self) -> Duration {
        self.count();
        if let Some(draft) = self.steward.draft(clocks(self.boot_id)) {
            self.write(draft).await;
            self.count();
        }
        let now = clocks(self.boot_id);
        self.clock_problem = None;
        for (of, seen) in self.steward.handle_clocks(now) {
            tell(&of, seen);
            if seen == Seen::Withheld {
                let text =
                    format!("the clock was set forward: the allowance of {of} is not given anew");
                self.clock_problem = Some(text);
            }
        }
        for (path, shaper) in self.shapers.iter().enumerate() {
            let decision = self.steward.decide(path, now.wall_ms);
            shaper.set_rates(decision.rate_up, decision.rate_down);
            shaper.set_fence(self.steward.fence(path, now.wall_ms));
        }
        self.publish(now)
    }

    fn count(&mut self) {
        let running = shared::time::now();
        for (path, shaper) in self.shapers.iter().enumerate() {
            let (full, rate) = (shaper.full_time(), shaper.rate());
            self.steward.handle_load(path, full, rate);
            self.steward.handle_traffic(path, shaper.traffic(), running);
        }
    }

    /// Tells everybody; how long until something else may hold.
    fn publish(&mut self, now: Clocks) -> Duration {
        let decide = |path| self.steward.decide(path, now.wall_ms);
        let paths: Vec<PathView> = self
            .steward
            .names()
            .enumerate()
            .map(|(path, name)| {
                let (bytes_per_sec, best_bytes_per_sec) = self.steward.speed(path);
                PathView {
                    name: name.to_owned(),
                    decision: decide(path),
                    traffic: self.steward.total(path),
                    bytes_per_sec,
                    best_bytes_per_sec,
                }
            })
            .collect();
        let changes = paths.iter().filter_map(|path| path.decision.next_change_ms);
        let wait = until_next(changes, now.wall_ms);
        let lost_problem = lost_problem(&self.steward.lost());
        let problems = [
            &self.file_problem,
            &self.hub_problem,
            &self.unused_problem,
            &self.counts_problem,
            &lost_problem,
            &self.write_problem,
            &self.clock_problem,
        ];
        let view = View {
            paths,
            allowances: self.steward.standings(),
            source: match (self.has_hub_policy, self.rules.from_hub) {
                (true, FromHub::Tighten) => "file and hub",
                (true, FromHub::Replace) => "hub",
                (true, FromHub::Ignore) | (false, _) => "file",
            },
            problems: problems.into_iter().flatten().cloned().collect(),
            rules: InForce::new(
                &self.rules,
                self.hub.as_ref().filter(|_| self.has_hub_policy),
            ),
            shares: self.shares,
        };
        self.view.send_if_modified(|held| {
            let is_news = **held != view;
            if is_news {
                log_changes(held, &view);
                *held = Arc::new(view);
            }
            is_news
        });
        wait
    }

    async fn write(&mut self, draft: Draft) {
        let (path, bytes) = (self.files.counts.clone(), draft.kept.encode());
        let written = blocking(move || crashsafe::replace(&path, &bytes, Access::Public)).await;
        match written {
            Ok(()) => self.write_problem = None,
            Err(error) => {
                let text = format!("counts cannot be kept: {error}");
                if self.write_problem.is_none() {
                    warn!(%error, "Counts of the link cannot be kept");
                }
                self.write_problem = Some(text);
            }
        }
        // a full disk is emptied by sending
        self.steward.written(&draft, shared::time::now());
    }

    async fn take_pushed(&mut self, pushed: Pushed) {
        let now = clocks(self.boot_id);
        let read = pushed.and_then(|text| {
            let policy = policy::pushed(&text).map_err(|error| error.to_string())?;
            usable(policy.as_ref(), &self.rules, now.wall_ms)
                .inspect_err(|error| warn!(error, "Policy of the hub refused"))?;
            Ok((text, policy))
        });
        let (text, policy) = match read {
            Ok(read) => read,
            Err(error) => {
                let text = format!("the hub's policy cannot be used, the old one holds: {error}");
                self.hub_problem = Some(text);
                return;
            }
        };
        self.hub_problem = None;
        let path = self.files.hub_policy.clone();
        let kept =
            blocking(move || crashsafe::replace(&path, text.as_bytes(), Access::Public)).await;
        if let Err(error) = kept {
            warn!(%error, "Policy of the hub cannot be kept, it holds until the next start");
        }
        let (is_set, rule) = (policy.is_some(), self.rules.from_hub);
        info!(is_set, ?rule, "Policy pushed by the hub");
        self.hub = policy;
        self.use_hub_policy(now);
    }

    /// Uses what the hub pushed, unless it would close the link beside the file's.
    fn use_hub_policy(&mut self, now: Clocks) {
        let used = usable(self.hub.as_ref(), &self.rules, now.wall_ms);
        self.unused_problem = used.as_ref().err().cloned();
        if let Err(error) = &used {
            warn!(error, "Policy of the hub is not used");
        }
        let used = used.ok().flatten();
        self.has_hub_policy = used.is_some();
        self.steward.set_hub(used, now);
    }

    /// Uses it again, or no longer, when that has changed with time.
    fn look_at_hub(&mut self, now: Clocks) {
        let used = usable(self.hub.as_ref(), &self.rules, now.wall_ms);
        if used.is_ok_and(|used| used.is_some()) != self.has_hub_policy {
            self.use_hub_policy(now);
        }
    }

    /// Takes over what changed in the configuration file.
    async fn reload(&mut self) {
        let Some(file) = self.files.config.clone() else {
            return;
        };
        let changed = stamp(&file);
        if changed == self.files.changed {
            return;
        }
        self.files.changed = changed;
        let load = move || Ok(Config::load(Some(&file)).map(|config| (config, settings_of(&file))));
        match blocking(load).await {
            Ok(Ok((config, settings))) => {
                self.file_problem = None;
                self.files.tell_unused(&settings);
                let rules = config.rules();
                if rules != self.rules {
                    info!("Policy of the configuration file changed");
                    let names = |rules: &Rules| -> Vec<String> {
                        rules.paths.iter().map(|(name, _)| name.clone()).collect()
                    };
                    if names(&rules) != names(&self.rules) {
                        warn!(
                            "Paths of the configuration file changed: they are used after a restart"
                        );
                    }
                    let now = clocks(self.boot_id);
                    self.steward.set_rules(rules.clone(), now);
                    self.rules = rules;
                    self.use_hub_policy(now);
                }
            }
            Ok(Err(error)) => {
                let text =
                    format!("the configuration file cannot be used, the old policy holds: {error}");
                warn!(%error, "Configuration file cannot be used, the old policy holds");
                self.file_problem = Some(text);
            }
            Err(error) => warn!(%error, "Configuration file cannot be read"),
        }
    }
}

/// The settings of a configuration file that are not read again while the node runs. One that cannot be read has none.
fn settings_of(file: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut settings = values(&text);
    // paths have policies, and that their names changed is told on its own
    settings.retain(|key, _| !key.starts_with("policy.") && key != "uplink.path");
    settings
}

/// Keys that are in one of them only, or have another value in the other.
fn differing(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differs = |key: &&String| old.get(*key) != new.get(*key);
    keys.into_iter().filter(differs).cloned().collect()
}

impl Files {
    fn new(config: &Config) -> Self {
        let dir = &config.node.data_dir;
        Self {
            counts: dir.join(COUNTS),
            hub_policy: dir.join(HUB_POLICY),
            changed: config.file.as_deref().and_then(stamp),
            settings: config.file.as_deref().map(settings_of).unwrap_or_default(),
            unused: Vec::new(),
            config: config.file.clone(),
        }
    }

    /// Logs which settings are not those that the node runs with.
    fn tell_unused(&mut self, settings: &BTreeMap<String, String>) {
        let unused = differing(&self.settings, settings);
        if unused != self.unused && !unused.is_empty() {
            let keys = unused.join(", ");
            warn!(keys, "Settings changed that are used after a restart only");
        }
        self.unused = unused;
    }

    /// What was kept, or nothing yet; `None`: there is a file, and it says nothing.
    fn read_counts(&self) -> Option<Kept> {
        let bytes = match read_bounded(&self.counts) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Some(Kept::default()),
            Err(error) => {
                error!(%error, "Counts of the link cannot be read, allowances count as used up");
                return None;
            }
        };
        Kept::decode(&bytes)
            .inspect_err(|error| {
                error!(%error, "Counts of the link are damaged, allowances count as used up");
            })
            .ok()
    }

    /// Puts others in the place of damaged counts. There is a file at every moment: a kill in between must
    /// not make a start without counts of the next one.
    fn set_counts_aside(&self, kept: &Kept) {
        let aside = self.counts.with_extension("damaged");
        drop(std::fs::remove_file(&aside));
        if let Err(error) = std::fs::hard_link(&self.counts, &aside) {
            warn!(%error, "Damaged counts of the link cannot be set aside");
        }
        if let Err(error) = crashsafe::replace(&self.counts, &kept.encode(), Access::Public) {
            warn!(%error, "Counts of the link cannot be kept");
        }
    }

    /// What is wrong with the one that was kept, in words.
    fn read_hub_policy(&self) -> Result<Option<Policy>, String> {
        let text = read_bounded(&self.hub_policy).map_err(|error| error.to_string())?;
        let Some(text) = text else { return Ok(None) };
        let text = String::from_utf8(text).map_err(|error| error.to_string())?;
        policy::pushed(&text).map_err(|error| error.to_string())
    }
}

/// What is used of a policy of the hub beside these rules.
///
/// # Errors
/// Why it is not, in words.
fn usable(hub: Option<&Policy>, rules: &Rules, wall_ms: i64) -> Result<Option<Policy>, String> {
    match hub {
        Some(hub) if rules.are_closed_by(hub, wall_ms) => Err(NO_CLASS.to_owned()),
        Some(_) | None => Ok(hub.cloned()),
    }
}

/// How long to wait for the first change that is still to come. One that should have been, such as the end of
/// a period that the clock is not believed to have reached, is looked at with every tick.
fn until_next(changes: impl Iterator<Item = i64>, now_ms: i64) -> Duration {
    let next = changes.filter(|at| *at > now_ms).min();
    next.map_or(TICK, |at| {
        let millis = at.saturating_sub(now_ms);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
            .clamp(Duration::from_millis(1), TICK)
    })
}

fn lost_problem(lost: &[&str]) -> Option<String> {
    let names = lost.join(", ");
    (!lost.is_empty()).then(|| {
        format!(
            "the counts were damaged: the allowance of {names} counts as used up until its next period"
        )
    })
}

/// The first fence that somebody is held by.
async fn met(shapers: &[Arc<Shaper>]) -> usize {
    let mut waiting: Vec<_> = shapers
        .iter()
        .map(|shaper| Box::pin(shaper.reached_fence()))
        .collect();
    std::future::poll_fn(|context| {
        let met = waiting
            .iter_mut()
            .position(|shaper| shaper.as_mut().poll(context).is_ready());
        met.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if found.len() > MAX_COUNTS {
        return Err(io::Error::other("too large"));
    }
    std::fs::read(path).map(Some)
}

fn stamp(file: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(file).ok()?;
    Some(Stamp {
        modified: found.modified().ok()?,
        changed: (found.ctime(), found.ctime_nsec()),
        inode: found.ino(),
        len: found.len(),
    })
}

fn clocks(boot_id: u128) -> Clocks {
    Clocks {
        wall_ms: shared::time::wall_ms(),
        running: shared::time::now(),
        boot_id,
    }
}

/// Tells boots apart. Where the system doesn't say, each start counts as one.
pub(crate) fn boot_id() -> u128 {
    let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&hex, 16).unwrap_or_else(|_| rand::random())
}

fn tell(of: &str, seen: Seen) {
    match seen {
        Seen::Same | Seen::Withheld => {}
        Seen::Renewed => info!(of, "Data allowance is given anew"),
        Seen::RenewedUnproven => warn!(
            of,
            "Data allowance is given anew: the clock was set forward"
        ),
        Seen::Returned => warn!(of, "Clock came back: data used meanwhile counts"),
    }
}

/// Once for each change of what holds.
fn log_changes(old: &View, new: &View) {
    for path in &new.paths {
        let before = old.paths.iter().find(|before| before.name == path.name);
        let held = before.map(|before| &before.decision);
        let Decision {
            rate_up,
            rate_down,
            classes,
            reason,
            ..
        } = &path.decision;
        let is_same = held.is_some_and(|held| {
            (held.rate_up, held.rate_down, held.classes) == (*rate_up, *rate_down, *classes)
        });
        if !is_same {
            let (up, down) = (shown(*rate_up), shown(*rate_down));
            info!(path = path.name, up, down, %classes, reason, "Link policy");
        }
    }
}

fn shown(rate: Option<BitRate>) -> String {
    rate.map_or_else(|| "unlimited".to_owned(), BitRate::rounded)
}

#[cfg(test)]
mod tests;
