//! Control groups of a machine: one of its own in each hierarchy that the host has mounted, of either version, which
//! the machine sees as the root. What kubelet and runc make is below it, and `down` removes all of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::state::remove_groups;

/// The hierarchies of the host.
pub(super) struct Hierarchies {
    mounted: Vec<Hierarchy>,
    /// Names under `/sys/fs/cgroup` that stand for another, such as `cpu` for `cpu,cpuacct`.
    links: Vec<(PathBuf, PathBuf)>,
}

struct Hierarchy {
    mount_point: PathBuf,
    /// `cgroup` or `cgroup2`.
    kind: String,
    /// What to mount it again with: the controllers of version 1.
    data: String,
    /// Where this process is in it, on the host.
    current: PathBuf,
}

const ROOT: &str = "/sys/fs/cgroup";

impl Hierarchies {
    /// Reads them from this process's entries in /proc.
    pub(super) fn read() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let links = fs::read_dir(ROOT).with_context(|| format!("cannot read {ROOT}"))?.flatten();
        let links = links.filter_map(|entry| Some((entry.path(), fs::read_link(entry.path()).ok()?))).collect();
        Ok(Self { mounted: parse(&mounts, &own), links })
    }

    /// The groups of a machine; `name` tells it from those of other clusters.
    pub(super) fn groups(&self, name: &str) -> Vec<PathBuf> {
        self.mounted.iter().map(|hierarchy| hierarchy.group(name)).collect()
    }

    /// Removes what machines of any cluster have left whose records are gone. What has a process stays whole: of a living
    /// machine even a group that is empty at the moment may be about to get one.
    pub(super) fn sweep(&self) {
        for hierarchy in &self.mounted {
            let group = hierarchy.group("cluster");
            let (Some(parent), Some(prefix)) = (group.parent(), group.file_name()) else { continue };
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                let ours = entry.file_name().to_string_lossy().starts_with(&*prefix.to_string_lossy());
                if ours && !has_process(&entry.path()) {
                    // Busy: a process has come meanwhile.
                    let _ = remove_groups(&entry.path());
                }
            }
        }
    }

    /// Makes the groups, moves this process there, and makes them the roots of what it sees.
    pub(super) fn enter(&self, name: &str) -> Result<()> {
        for hierarchy in &self.mounted {
            let group = hierarchy.group(name);
            fs::create_dir_all(&group).with_context(|| format!("cannot create {}", group.display()))?;
            // A new group of this controller has no processor and no memory, and takes no process until it has.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (hierarchy.current.join(file), group.join(file));
                if hierarchy.kind == "cgroup" && from.is_file() {
                    let value = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
                    fs::write(&to, value.trim()).with_context(|| format!("cannot write {}", to.display()))?;
                }
            }
            join(&group)?;
        }
        unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare(CLONE_NEWCGROUP)")?;
        for hierarchy in &self.mounted {
            // Version 2 gives no controllers to the children of a group that has processes itself.
            if hierarchy.kind == "cgroup2" {
                let daemons = hierarchy.group(name).join("daemons");
                fs::create_dir_all(&daemons).with_context(|| format!("cannot create {}", daemons.display()))?;
                join(&daemons)?;
            }
        }
        Ok(())
    }

    /// Mounts them below `root` as the host has them.
    pub(super) fn mount(&self, root: &Path) -> Result<()> {
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let here = |path: &Path| -> Result<PathBuf> {
            let path = inside(path);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
            Ok(path)
        };
        if self.mounted.iter().all(|hierarchy| hierarchy.mount_point != Path::new(ROOT)) {
            mount(Some("tmpfs"), &here(Path::new(ROOT))?, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
                .with_context(|| format!("mount -t tmpfs {ROOT}"))?;
        }
        for Hierarchy { mount_point, kind, data, current: _ } in &self.mounted {
            mount(Some(kind.as_str()), &here(mount_point)?, Some(kind.as_str()), MsFlags::empty(), Some(data.as_str()))
                .with_context(|| format!("mount -t {kind} -o {data} {}", mount_point.display()))?;
        }
        for (link, target) in &self.links {
            let link = inside(link);
            std::os::unix::fs::symlink(target, &link).with_context(|| format!("cannot create {}", link.display()))?;
        }
        Ok(())
    }
}

impl Hierarchy {
    /// Beside the caller in version 1, whose limits then hold; at the root in version 2, where the caller's own group
    /// ends with its session, and gives no controllers.
    fn group(&self, name: &str) -> PathBuf {
        let parent = if self.kind == "cgroup2" { &self.mount_point } else { &self.current };
        parent.join(format!("netpol-{name}"))
    }
}

/// Whether a process is in the group or below it.
fn has_process(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
        || fs::read_dir(group)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && has_process(&entry.path()))
}

fn join(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("cannot enter {}", group.display()))
}

/// Takes the hierarchies from the texts of `mountinfo` and `cgroup`.
fn parse(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        // 36 35 98:0 /root /mount/point options … - type source superoptions
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mount: Vec<&str> = mount.split(' ').collect();
        let file_system: Vec<&str> = file_system.split(' ').collect();
        let (Some(root), Some(point)) = (mount.get(3), mount.get(4)) else { continue };
        let (Some(kind), Some(options)) = (file_system.first(), file_system.get(2)) else { continue };
        if !matches!(*kind, "cgroup" | "cgroup2") {
            continue;
        }
        let controllers: Vec<&str> = if *kind == "cgroup2" {
            Vec::new()
        } else {
            let ours = |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "release_agent");
            options.split(',').filter(ours).collect()
        };
        let place = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            let same = match controllers.first() {
                None => names.is_empty(),
                Some(first) => names.split(',').any(|name| name == *first),
            };
            same.then_some(path)
        });
        let Some(place) = place else { continue };
        let below = Path::new(place).strip_prefix(root).unwrap_or(Path::new(""));
        let mount_point = PathBuf::from(point);
        let current = mount_point.join(below);
        let data = controllers.join(",");
        // The same hierarchy may be mounted twice.
        if found.iter().all(|other| other.kind != *kind || other.data != data) {
            found.push(Hierarchy { mount_point, kind: (*kind).to_owned(), data, current });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_processes_of_those_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("pod/container");
        fs::create_dir_all(&below).unwrap();
        fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        fs::write(below.join("cgroup.procs"), "").unwrap();
        assert!(!has_process(folder.path()));
        fs::write(below.join("cgroup.procs"), "17\n").unwrap();
        assert!(has_process(folder.path()));
    }

    #[test]
    fn hierarchies_of_both_versions_are_found_with_the_callers_place() {
        let mounts = "26 24 0:23 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      27 24 0:24 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      28 24 0:25 /a /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      29 24 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n\
                      30 24 0:27 / /proc rw - proc proc rw\n";
        let own = "3:name=systemd:/\n2:memory:/a/b\n1:cpu:/c\n0::/user\n";
        let found = parse(mounts, own);
        let groups: Vec<String> = found.iter().map(|one| one.group("cluster-n1").display().to_string()).collect();
        assert_eq!(
            groups,
            [
                "/sys/fs/cgroup/cpu/c/netpol-cluster-n1",
                "/sys/fs/cgroup/systemd/netpol-cluster-n1",
                "/sys/fs/cgroup/memory/b/netpol-cluster-n1",
                "/sys/fs/cgroup/unified/netpol-cluster-n1",
            ]
        );
        assert_eq!(
            found.iter().map(|one| one.data.as_str()).collect::<Vec<_>>(),
            ["cpu", "name=systemd", "memory", ""]
        );
    }
}
