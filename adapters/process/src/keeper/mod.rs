//! The keeper: parent of every zygote and worker of one kernel instance.
//!
//! A single-threaded poll loop that turns packets, ended children and the clock into inputs of [`state`], and performs
//! what that decides. It runs no user code and no runtime, so that it has nothing to die of. It lives in
//! `DIR/keeper.sock` (0600) and holds `DIR/keeper.lock` for as long as it lives: whoever has the lock may remove a
//! stale socket and kill whatever bears the directory's mark.
//!
//! What it gives a worker by inheritance (tier 0): umask 077, no core files, no new privileges, no descriptor that it
//! was not handed, a cleared environment, a higher place in the order in which the system kills for memory, and huge pages
//! for those who ask for them; and a limit group of its own, where there are some ([`crate::groups`]).
//!
//! When it ends without a kernel, it takes along what that one left: see [`temporary`].
//!
//! It never blocks on a peer: every socket is non-blocking, and one that does not read is closed.

mod hygiene;
mod state;
mod step;
mod sys;
mod temporary;
mod zygote;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use eclosion_schemas::WorkerId;
use eclosion_schemas::certificate::signal_name;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;
use rustix::process::Signal;

use self::state::State;
use self::step::{Action, Exit, Input, KernelId, ZygoteId};
use self::sys::Peek;
use self::temporary::Temporary;
use crate::groups::{self, Groups};
use crate::message::{FromKeeper, FromZygote, ToKeeper, ToWorker, ToZygote};
use crate::procfs::{self, ProcessId};
use crate::socket::{self, Link, Received};
use crate::tree::{self, Brand};

/// Where it listens, below its directory.
pub const SOCKET_NAME: &str = "keeper.sock";
const LOCK_NAME: &str = "keeper.lock";
/// What it writes to standard output, once, when it listens.
pub const READY_LINE: &str = "ready";

/// Connections that have not said hello.
const STRANGERS_MAX: usize = 4;
const HELLO_MS: u64 = 2_000;
/// Packets taken from one peer before the others have their turn.
const PACKETS_PER_TURN: usize = 64;
/// For whoever is killed when memory runs out: a worker before the kernel.
const OOM_SCORE: &str = "500";

/// One keeper.
#[derive(Debug, Clone)]
pub struct KeeperOptions {
    pub instance: String,
    /// The instance's runtime directory, 0700; it exists.
    pub dir: PathBuf,
    /// How long it waits for a kernel after its kernel died.
    pub grace_ms: u64,
    /// Removed if it ends without a kernel: sockets nobody listens on, and what is in these directories.
    pub temporary: Vec<PathBuf>,
    /// Where it makes a limit group for each worker; none: nobody is held.
    pub groups: Option<PathBuf>,
}

/// The whole life of a keeper process. Call it first of all in `main`, on the only thread: it closes every inherited
/// descriptor but the standard three.
///
/// Exit code 0: it ended as it should, or another keeper lives in the directory. 70: it could not start.
#[must_use]
pub fn main(options: KeeperOptions) -> ExitCode {
    sys::close_inherited();
    match Shell::start(options) {
        Ok(Some(shell)) => {
            shell.run();
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(why) => {
            // Standard error is the log file that the kernel chose for its keeper.
            drop(writeln!(io::stderr(), "the keeper could not start: {why}"));
            ExitCode::from(70)
        }
    }
}

struct Shell {
    directory: PathBuf,
    started: Instant,
    state: State,
    signals: OwnedFd,
    listener: OwnedFd,
    kernel: Option<(KernelId, Link)>,
    strangers: BTreeMap<KernelId, Stranger>,
    kernels_seen: u64,
    zygotes: BTreeMap<ZygoteId, zygote::Handle>,
    /// The kernel's ends of streams whose workers are not forked yet.
    streams: BTreeMap<WorkerId, OwnedFd>,
    lifelines: BTreeMap<WorkerId, OwnedFd>,
    /// Where a worker's attempts have their scratch; one that is killed does not clean up.
    scratches: BTreeMap<WorkerId, PathBuf>,
    groups: Box<dyn Groups>,
    /// Groups of the dead, until nobody is in them.
    emptying: BTreeSet<WorkerId>,
    temporary: Temporary,
    done: bool,
    _lock: File,
    /// Keeps the descriptor numbers that zygotes are given taken in this process.
    _reserved: Vec<File>,
}

struct Stranger {
    link: Link,
    until_ms: u64,
}

impl Shell {
    /// `None`: another keeper lives here.
    fn start(options: KeeperOptions) -> io::Result<Option<Self>> {
        let directory = fs::canonicalize(&options.dir)?;
        let reserved = hygiene::reserve_descriptors()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join(LOCK_NAME))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(why) => return Err(why.into()),
        }
        hygiene::harden()?;
        let signals = sys::signal_descriptor()?;
        crate::sweep::sweep_marked(&directory);
        let path = directory.join(SOCKET_NAME);
        match fs::remove_file(&path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        let listener = socket::listen(&path)?;
        hygiene::announce()?;
        let started = Instant::now();
        let groups = groups::at(options.groups);
        // No other keeper lives here, so whoever is in them was its worker.
        let emptying: BTreeSet<_> = groups.all().into_iter().collect();
        emptying.iter().for_each(|worker| groups.kill(worker));
        Ok(Some(Self {
            state: State::new(options.instance, std::process::id(), options.grace_ms, 0),
            directory,
            started,
            signals,
            listener,
            kernel: None,
            strangers: BTreeMap::new(),
            kernels_seen: 0,
            zygotes: BTreeMap::new(),
            streams: BTreeMap::new(),
            lifelines: BTreeMap::new(),
            scratches: BTreeMap::new(),
            groups,
            emptying,
            temporary: Temporary::new(options.temporary),
            done: false,
            _lock: lock,
            _reserved: reserved,
        }))
    }

    fn run(mut self) {
        while !self.done {
            self.wait();
            // The kernel's end is seen before a new kernel is heard; a zygote's word before its worker's end.
            self.hear_signals();
            self.hear_kernel();
            self.hear_strangers();
            for zygote in self.zygotes.keys().copied().collect::<Vec<_>>() {
                self.hear_zygote(zygote);
            }
            self.reap();
            self.empty_groups();
            self.step(Input::Tick);
        }
        if self.kernel.is_none() {
            self.temporary.remove();
        }
        drop(fs::remove_file(self.directory.join(SOCKET_NAME)));
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn wait(&self) {
        let now_ms = self.now_ms();
        let greeting = self.strangers.values().map(|stranger| stranger.until_ms);
        let wake_at_ms = greeting.chain(self.state.wake_at_ms(now_ms)).min();
        let timeout = wake_at_ms.map(|at_ms| {
            let wait_ms = at_ms.saturating_sub(now_ms).min(3_600_000);
            rustix::event::Timespec {
                tv_sec: i64::try_from(wait_ms / 1_000).unwrap_or(0),
                tv_nsec: i64::try_from(wait_ms % 1_000 * 1_000_000).unwrap_or(0),
            }
        });
        let mut descriptors = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.strangers.len() < STRANGERS_MAX {
            descriptors.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let links = self.kernel.iter().map(|(_, link)| link);
        let links = links.chain(self.strangers.values().map(|stranger| &stranger.link));
        for link in links.chain(self.zygotes.values().map(|zygote| &zygote.link)) {
            let wanted = if link.is_full() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            descriptors.push(PollFd::new(link, wanted));
        }
        // Interrupted or not: everything is looked at without blocking.
        _ = rustix::event::poll(&mut descriptors, timeout.as_ref());
    }

    fn hear_signals(&mut self) {
        let mut pending = [0_u8; 16 * size_of::<libc::signalfd_siginfo>()];
        while let Ok(bytes @ 1..) = rustix::io::read(&self.signals, &mut pending) {
            let signals = pending[..bytes].chunks_exact(size_of::<libc::signalfd_siginfo>());
            // ssi_signo is the first field, a u32.
            let asked = signals.filter_map(|info| Some(u32::from_ne_bytes(*info.first_chunk()?)));
            if asked.into_iter().any(|signal| i32::try_from(signal) != Ok(libc::SIGCHLD)) {
                self.step(Input::Shutdown);
            }
        }
    }

    fn hear_kernel(&mut self) {
        for _ in 0..PACKETS_PER_TURN {
            let Some((id, link)) = &mut self.kernel else { return };
            let id = *id;
            let received = link.flush().and_then(|()| link.receive());
            match received {
                Ok(Received::Nothing) => return,
                Ok(Received::Message(said, _)) => self.kernel_said(id, said),
                Ok(Received::End) | Err(_) => self.kernel_gone(),
            }
        }
    }

    fn kernel_gone(&mut self) {
        if let Some((kernel, _)) = self.kernel.take() {
            self.temporary.note();
            self.step(Input::KernelGone { kernel });
        }
    }

    fn kernel_said(&mut self, kernel: KernelId, said: ToKeeper) {
        self.step(match said {
            ToKeeper::Hello { instance, epoch } => Input::Hello { kernel, instance, epoch },
            ToKeeper::Spawn(spawn) => Input::Spawn(spawn),
            ToKeeper::Signal { worker, signal, tree } => Input::Signal { worker, signal, tree },
            ToKeeper::Forget { worker } => Input::Forget { worker },
            ToKeeper::Shutdown {} => Input::Shutdown,
        });
    }

    fn hear_strangers(&mut self) {
        while self.strangers.len() < STRANGERS_MAX
            && let Ok(Some(link)) = socket::accept(&self.listener)
        {
            self.kernels_seen += 1;
            let until_ms = self.now_ms() + HELLO_MS;
            self.strangers.insert(KernelId(self.kernels_seen), Stranger { link, until_ms });
        }
        let now_ms = self.now_ms();
        for id in self.strangers.keys().copied().collect::<Vec<_>>() {
            let Some(stranger) = self.strangers.get(&id) else { continue };
            match stranger.link.receive() {
                Ok(Received::Message(hello @ ToKeeper::Hello { .. }, _)) => self.kernel_said(id, hello),
                Ok(Received::Nothing) if now_ms < stranger.until_ms => {}
                _ => drop(self.strangers.remove(&id)),
            }
        }
    }

    fn hear_zygote(&mut self, id: ZygoteId) {
        for _ in 0..PACKETS_PER_TURN {
            let Some(handle) = self.zygotes.get_mut(&id) else { return };
            let received = handle.link.flush().and_then(|()| handle.link.receive());
            match received {
                Ok(Received::Nothing) => return,
                Ok(Received::Message(said, _)) => {
                    let process = self.named_process(&said);
                    self.step(Input::Zygote { zygote: id, said, process });
                }
                // Its end is reported when it is reaped, with its status and last words.
                Ok(Received::End) | Err(_) => return kill_zygote(handle),
            }
        }
    }

    /// A zygote runs what its preloads brought along: it is believed only about our own descendants.
    fn named_process(&self, said: &FromZygote) -> Option<ProcessId> {
        let FromZygote::Forked { pid, .. } = said else { return None };
        let row = procfs::row(*pid)?;
        // By its own parents, of which there is mostly one: the whole table would cost more than the fork.
        let descends = procfs::descends_from(row, std::process::id()) || row.zombie;
        let is_zygote = self.zygotes.values().any(|zygote| zygote.pid == *pid);
        (descends && !is_zygote && self.state.worker_of(*pid).is_none()).then_some(row.id)
    }

    fn reap(&mut self) {
        loop {
            match sys::peek() {
                Peek::Ended(pid) => self.reap_one(pid),
                Peek::None => return,
                Peek::Childless => return self.step(Input::Childless),
            }
        }
    }

    fn reap_one(&mut self, pid: u32) {
        // Until it is waited for, its pid is nobody else's: what it left behind is found now or never.
        let process = procfs::row(pid).map_or(ProcessId { pid, start_ticks: 0 }, |row| row.id);
        let mut oom_limit_bytes = None;
        if let Some((worker, leader, brand)) = self.state.worker_of(pid) {
            oom_limit_bytes = self.groups.oom_limit_bytes(worker);
            tree::signal(leader, Some(Brand::nth(brand)), Signal::KILL);
            self.groups.kill(worker);
            self.emptying.insert(worker.clone());
        }
        let zygote = self.zygotes.iter().find(|(_, handle)| handle.pid == pid).map(|(id, _)| *id);
        if let Some(id) = zygote {
            self.hear_zygote(id);
        }
        let Some(exit) = sys::reap(pid) else { return };
        let exit = Exit { oom_limit_bytes, ..exit };
        let Some(id) = zygote else { return self.step(Input::Reaped { process, exit }) };
        let words = self.zygotes.remove(&id).map(|handle| handle.last_words()).unwrap_or_default();
        let how = match exit.how {
            crate::How::Code(code) => format!("exited with code {code}"),
            crate::How::Signal(signal) => format!("was killed by {}", signal_name(signal)),
        };
        self.step(Input::ZygoteGone { zygote: id, text: format!("the zygote {how}\n{words}") });
    }

    /// Whoever is killed in a group is in it until he is dead, and then there is a child to wait for: looked at each turn.
    fn empty_groups(&mut self) {
        let groups = &self.groups;
        self.emptying.retain(|worker| !groups.remove(worker));
    }

    fn step(&mut self, input: Input) {
        let actions = self.state.step(input, self.now_ms());
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Attend(kernel) => self.attend(kernel),
            Action::Refuse(kernel, error) => self.refuse(kernel, error),
            Action::Tell(message) => self.tell(&message, Vec::new()),
            Action::TellWithStream(worker, message) => {
                let stream = self.streams.remove(&worker);
                self.tell(&message, stream.into_iter().collect());
            }
            Action::StartZygote(id, key) => match zygote::Handle::start(id, &key, &self.directory) {
                Ok(handle) => drop(self.zygotes.insert(id, handle)),
                Err(why) => {
                    let text = format!("{} cannot be started: {why}", key.python);
                    self.step(Input::ZygoteGone { zygote: id, text });
                }
            },
            Action::EndZygote(id) => self.zygotes.get(&id).into_iter().for_each(kill_zygote),
            Action::Fork(id, spawn) => {
                if let Err(why) = self.fork(id, &spawn) {
                    let said = FromZygote::ForkFailed { worker: spawn.worker, error: why.to_string() };
                    self.step(Input::Zygote { zygote: id, said, process: None });
                }
            }
            Action::Adopt { worker, process, brand } => {
                if let Err(why) = self.groups.place(&worker, process.pid) {
                    // It is sampled, as all are.
                    drop(writeln!(io::stderr(), "{worker} cannot be placed in a group: {why}"));
                }
                adopt(process, brand);
            }
            Action::HandOver(worker, process) => self.hand_over(worker, process),
            Action::Signal { process, brand, signal, tree } => send_signal(process, brand, signal, tree),
            Action::Release(worker) => {
                self.streams.remove(&worker);
                self.lifelines.remove(&worker);
                // Mostly it was never made. What is still written to it goes with the keeper's end, or the kernel's.
                drop(self.scratches.remove(&worker).map(fs::remove_dir_all));
            }
            Action::SignalAll(signal) => signal_all(signal),
            Action::Exit => self.done = true,
        }
    }

    /// The new kernel takes the place of the old one, whose connection is closed.
    fn attend(&mut self, kernel: KernelId) {
        if let Some(stranger) = self.strangers.remove(&kernel) {
            self.kernel = Some((kernel, stranger.link));
        }
    }

    fn refuse(&mut self, kernel: KernelId, error: String) {
        if let Some(mut stranger) = self.strangers.remove(&kernel) {
            // One that does not hear why finds its connection closed.
            drop(stranger.link.send(&FromKeeper::Refused { error }, Vec::new()));
        }
    }

    fn tell(&mut self, message: &FromKeeper, descriptors: Vec<OwnedFd>) {
        let Some((_, link)) = &mut self.kernel else { return };
        if link.send(message, descriptors).is_err() {
            self.kernel_gone();
        }
    }

    fn fork(&mut self, id: ZygoteId, spawn: &crate::SpawnWorker) -> io::Result<()> {
        let handle = self.zygotes.get_mut(&id).ok_or_else(|| io::Error::other("its zygote is gone"))?;
        let (stream, stream_of_worker) = socket::stream_pair()?;
        let (lifeline, lifeline_of_worker) = socket::packet_pair()?;
        let request = ToZygote::Fork {
            worker: spawn.worker.clone(),
            stdout: spawn.stdout.clone(),
            stderr: spawn.stderr.clone(),
            scratch: spawn.cwd.clone(),
        };
        if handle.link.send(&request, vec![stream_of_worker, lifeline_of_worker]).is_err() {
            // It is dead or deaf: when it is reaped, what it was asked for is asked of another.
            kill_zygote(handle);
        }
        self.streams.insert(spawn.worker.clone(), stream);
        self.lifelines.insert(spawn.worker.clone(), lifeline);
        self.scratches.insert(spawn.worker.clone(), PathBuf::from(&spawn.cwd));
        Ok(())
    }

    fn hand_over(&mut self, worker: WorkerId, process: ProcessId) {
        let Some(lifeline) = self.lifelines.get(&worker) else { return };
        let handed = socket::stream_pair().and_then(|(ours, theirs)| {
            let packet = socket::encode(&ToWorker::Adopt {})?;
            socket::send_packet(lifeline.as_fd(), &packet, &[theirs.as_fd()])?;
            Ok(ours)
        });
        match handed {
            Ok(stream) => {
                let ProcessId { pid, start_ticks } = process;
                self.tell(&FromKeeper::Survivor { worker, pid, start_ticks }, vec![stream]);
            }
            // It does not listen to its lifeline: nobody can talk to it again. Its end is reported like any other.
            Err(_) => drop(procfs::signal(process, Signal::KILL)),
        }
    }
}

fn kill_zygote(handle: &zygote::Handle) {
    if let Some(row) = procfs::row(handle.pid) {
        drop(procfs::signal(row.id, Signal::KILL));
    }
}

/// Both may fail only because the worker is gone again.
fn adopt(process: ProcessId, brand: u32) {
    drop(Brand::nth(brand).set(process.pid));
    drop(fs::write(format!("/proc/{}/oom_score_adj", process.pid), OOM_SCORE));
}

fn send_signal(process: ProcessId, brand: u32, signal: i32, tree: bool) {
    let Some(signal) = Signal::from_named_raw(signal) else { return };
    if tree {
        tree::signal(process, Some(Brand::nth(brand)), signal);
    } else {
        // Refused only if it is not ours any more.
        drop(procfs::signal(process, signal));
    }
}

fn signal_all(signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        tree::signal_all(signal, || tree::descendants(std::process::id(), &procfs::table()));
    }
}
