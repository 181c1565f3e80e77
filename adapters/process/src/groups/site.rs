//! Where groups can be made: finds out whether a cgroup is ours to divide, and divides it.
//!
//! A cgroup with controllers for its children may hold no process of its own (the root of the machine aside). So BASE is
//!
//! - the parent, if we are in a leaf that is called `kernel`: systemd's `DelegateSubgroup=kernel` makes it, and we do;
//! - our own cgroup, if it hands memory on already;
//! - our own cgroup, if nobody but this process is in it: then it moves into such a leaf. Not in a `.service`, which could
//!   not be started again while its old workers are still in there.
//!
//! Otherwise there is none, and [`Refusal`] says why and what would help. [`look`] only looks; [`arrange`] does it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::set;

/// The leaf in which kernel, keeper and zygotes are.
const LEAF: &str = "kernel";
/// Without the first there are no groups.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// Where this process stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The directory of our own cgroup.
    pub own: PathBuf,
    /// Where the file system is mounted, above it.
    pub mount: PathBuf,
    pub pid: u32,
}

/// Why there are no groups, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    pub why: String,
    pub help: Option<String>,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub base: PathBuf,
    /// This process has to move into the leaf first.
    pub moves: bool,
}

fn refused<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { why: why.into(), help: None })
}

impl Site {
    /// This process's, as the system shows it.
    ///
    /// # Errors
    /// There is no cgroup of version 2 here.
    pub fn here() -> Result<Self, Refusal> {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        Self::of(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"), std::process::id())
    }

    fn of(cgroup: &str, mountinfo: &str, pid: u32) -> Result<Self, Refusal> {
        let Some(own) = cgroup.lines().find_map(|line| line.strip_prefix("0::")) else {
            return refused("this system has no cgroup of version 2");
        };
        // root, mount point, …, "-", type: man 5 proc_pid_mountinfo.
        let mounts = mountinfo.lines().filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(3);
            (after.split(' ').next()? == "cgroup2").then_some((fields.next()?, fields.next()?))
        });
        let below = |(root, mount): (&str, &str)| {
            let below = Path::new(own).strip_prefix(root).ok()?;
            let mount = PathBuf::from(mount);
            Some(Self { own: mount.join(below), mount, pid })
        };
        match mounts.filter_map(below).next() {
            Some(site) => Ok(site),
            None => refused(format!("the cgroup {own} of this process is mounted nowhere")),
        }
    }

    fn shown(&self, group: &Path) -> String {
        format!("/{}", group.strip_prefix(&self.mount).unwrap_or(group).display())
    }
}

/// Looks where groups could be made, and changes nothing.
///
/// # Errors
/// See [`Refusal`].
pub fn look(site: &Site) -> Result<Plan, Refusal> {
    let leaf = site.own.file_name().is_some_and(|name| name == LEAF) && site.own != site.mount;
    let above = site.own.parent().filter(|_| leaf);
    let base = above.unwrap_or(&site.own).to_owned();
    if !has_memory(&base.join("cgroup.controllers")) {
        let shown = site.shown(&base);
        return refused(format!(
            "the memory controller is not there for the cgroup {shown}: not delegated, or in use by version 1"
        ));
    }
    let moves = above.is_none() && !has_memory(&base.join("cgroup.subtree_control"));
    if moves {
        may_move(site)?;
    }
    let needed = [base.clone(), base.join("cgroup.procs"), base.join("cgroup.subtree_control")];
    for path in needed {
        if let Err(why) = rustix::fs::access(&path, Access::WRITE_OK) {
            return refused(format!("{} cannot be written: {}", path.display(), io::Error::from(why)));
        }
    }
    Ok(Plan { base, moves })
}

/// Only who is alone, and where nobody has to come in again later.
fn may_move(site: &Site) -> Result<(), Refusal> {
    let shown = site.shown(&site.own);
    if site.own.extension().is_some_and(|extension| extension == "service") {
        return Err(Refusal {
            why: format!("the unit of the cgroup {shown} has no leaf for the kernel"),
            help: Some(format!("write Delegate=yes and DelegateSubgroup={LEAF} into the unit (systemd 254)")),
        });
    }
    let others = words(&site.own.join("cgroup.procs"));
    let others = others.iter().filter(|pid| **pid != site.pid.to_string()).count();
    if others > 0 {
        return Err(Refusal {
            why: format!("{others} other processes are in the cgroup {shown} of this one, and are not moved"),
            help: Some("systemd-run --user --scope -p Delegate=yes eclosion up --foreground".to_owned()),
        });
    }
    Ok(())
}

fn has_memory(file: &Path) -> bool {
    words(file).iter().any(|name| name == CONTROLLERS[0])
}

/// Divides what [`look`] found, and gives the directory for the groups of this instance.
///
/// # Errors
/// See [`Refusal`]; then this process is where it was.
pub fn arrange(site: &Site, instance: &str) -> Result<PathBuf, Refusal> {
    let Plan { base, moves } = look(site)?;
    let done = divide(site, &base, moves, instance);
    done.or_else(|(what, why)| {
        if moves {
            // Where it came from nobody was but itself.
            drop(set(&base.join("cgroup.procs"), &site.pid.to_string()));
        }
        refused(format!("{} cannot be written: {why}", what.display()))
    })
}

fn divide(site: &Site, base: &Path, moves: bool, instance: &str) -> Result<PathBuf, (PathBuf, io::Error)> {
    let made = |path: PathBuf| match fs::create_dir(&path) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err((path, why)),
        _ => Ok(path),
    };
    if moves {
        let leaf = made(base.join(LEAF))?.join("cgroup.procs");
        set(&leaf, &site.pid.to_string()).map_err(|why| (leaf, why))?;
    }
    hand_on(base)?;
    let root = made(base.join(format!("eclosion-{instance}")))?;
    hand_on(&root)?;
    Ok(root)
}

/// What is there and not handed on yet.
fn hand_on(group: &Path) -> Result<(), (PathBuf, io::Error)> {
    let (there, on) =
        (words(&group.join("cgroup.controllers")), words(&group.join("cgroup.subtree_control")));
    let file = group.join("cgroup.subtree_control");
    let missing = CONTROLLERS
        .iter()
        .filter(|name| there.iter().any(|it| it == *name) && !on.iter().any(|it| it == *name));
    let text: Vec<_> = missing.map(|name| format!("+{name}")).collect();
    if text.is_empty() {
        return Ok(());
    }
    set(&file, &text.join(" ")).map_err(|why| (file, why))
}

fn words(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount with one cgroup in it, as the system would show it.
    fn site(own: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Site) {
        let mount = tempfile::tempdir().unwrap();
        let site = Site { own: mount.path().join(own), mount: mount.path().to_owned(), pid: 7 };
        fs::create_dir_all(&site.own).unwrap();
        for (file, text) in [("cgroup.procs", "7\n"), ("cgroup.subtree_control", "")].iter().chain(files) {
            let path = mount.path().join(file);
            let path = if file.contains('/') { path } else { site.own.join(file) };
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (mount, site)
    }

    const BOTH: (&str, &str) = ("cgroup.controllers", "cpu memory pids\n");

    #[test]
    fn finds_its_own_cgroup_below_the_mount_that_shows_it() {
        let cgroup = "4:memory:/x\n0::/user.slice/run.scope\n";
        let line = |root: &str, kind: &str| {
            format!("36 25 0:31 {root} /sys/fs/cgroup rw,nosuid shared:9 - {kind} cgroup2 rw\n")
        };
        let found = Site::of(cgroup, &line("/", "cgroup2"), 7).unwrap();
        assert_eq!(found.own, Path::new("/sys/fs/cgroup/user.slice/run.scope"));
        let bound = Site::of(cgroup, &line("/user.slice", "cgroup2"), 7).unwrap();
        assert_eq!(bound.own, Path::new("/sys/fs/cgroup/run.scope"));
        for (cgroup, mountinfo) in [
            ("4:memory:/x\n", line("/", "cgroup2")),
            (cgroup, line("/", "cgroup")),
            (cgroup, line("/system.slice", "cgroup2")),
            (cgroup, "torn - ".into()),
        ] {
            assert!(Site::of(cgroup, &mountinfo, 7).is_err(), "{mountinfo}");
        }
    }

    #[test]
    fn nobody_else_is_moved() {
        for (own, files, found) in [
            ("run.scope", vec![BOTH], Ok(("run.scope", true))),
            ("run.scope", vec![BOTH, ("cgroup.procs", "7\n8\n")], Err("1 other processes")),
            // Of another namespace: a pid that cannot be seen is a 0.
            ("run.scope", vec![BOTH, ("cgroup.procs", "0\n7\n")], Err("1 other processes")),
            ("e.service", vec![BOTH], Err("has no leaf for the kernel")),
            ("run.scope", vec![BOTH, ("cgroup.subtree_control", "memory\n")], Ok(("run.scope", false))),
            ("run.scope", vec![("cgroup.controllers", "hugetlb\n")], Err("memory controller is not there")),
            ("run.scope", vec![], Err("memory controller is not there")),
        ] {
            let (mount, site) = site(own, &files);
            let looked = look(&site).map_err(|refusal| refusal.to_string());
            match found {
                Ok((base, moves)) => assert_eq!(looked, Ok(Plan { base: mount.path().join(base), moves })),
                Err(words) => assert!(looked.clone().is_err_and(|why| why.contains(words)), "{looked:?}"),
            }
        }
    }

    #[test]
    fn a_leaf_that_was_made_for_us_is_divided_above() {
        let above = [
            ("e.service/cgroup.controllers", "memory pids"),
            ("e.service/cgroup.procs", ""),
            ("e.service/cgroup.subtree_control", ""),
        ];
        let (mount, site) = site("e.service/kernel", &above);
        let base = mount.path().join("e.service");
        assert_eq!(look(&site), Ok(Plan { base: base.clone(), moves: false }));
        let root = arrange(&site, "default").unwrap();
        assert_eq!(root, base.join("eclosion-default"));
        assert_eq!(fs::read_to_string(base.join("cgroup.subtree_control")).unwrap(), "+memory +pids");
        assert_eq!(fs::read_to_string(site.own.join("cgroup.procs")).unwrap(), "7\n", "it stays where it is");
    }

    #[test]
    fn who_is_alone_moves_into_a_leaf_and_back_if_that_was_in_vain() {
        let (mount, site) = site("run.scope", &[BOTH, ("run.scope/kernel/cgroup.procs", "")]);
        arrange(&site, "default").unwrap();
        assert_eq!(fs::read_to_string(site.own.join("kernel/cgroup.procs")).unwrap(), "7");
        assert_eq!(fs::read_to_string(site.own.join("cgroup.subtree_control")).unwrap(), "+memory +pids");

        // In the way of the directory for the groups.
        fs::remove_dir(site.own.join("eclosion-default")).unwrap();
        fs::write(site.own.join("cgroup.procs"), "").unwrap();
        fs::write(mount.path().join("run.scope/kernel/cgroup.procs"), "").unwrap();
        fs::remove_file(mount.path().join("run.scope/kernel/cgroup.procs")).unwrap();
        let refusal = arrange(&site, "default").unwrap_err();
        assert!(refusal.why.contains("kernel/cgroup.procs cannot be written"), "{refusal}");
        assert_eq!(fs::read_to_string(site.own.join("cgroup.procs")).unwrap(), "7", "back again");
    }
}
