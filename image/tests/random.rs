//! Random stacks of layers, mounted, against a naive model of what the specification says.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::*;

/// Stacks of one image, each in a folder of its own: a mount costs more than a stack.
const STACKS: u64 = 50;
const IMAGES: u64 = 10;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// xorshift64*: the same stacks every time, and a seed to name in a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    /// One to three components.
    fn path(&mut self) -> String {
        let parts: Vec<&str> = (0..=self.below(3)).map(|_| NAMES[self.below(3)]).collect();
        parts.join("/")
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Thing {
    /// Mode, if the layer states it.
    Directory(Option<u32>),
    File(String),
    Link(String),
}

type Tree = BTreeMap<String, Thing>;

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn is_below(path: &str, folder: &str) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// One layer: its archive, its own tree, and what it deletes.
#[derive(Default)]
struct Model {
    tar: Tar,
    tree: Tree,
    deleted: BTreeSet<String>,
    opaque: BTreeSet<String>,
}

impl Model {
    /// Makes the directories above `path`; false if one of them is something else in this layer.
    fn imply(&mut self, path: &str) -> bool {
        if parents(path)
            .any(|parent| self.tree.get(parent).is_some_and(|thing| !matches!(thing, Thing::Directory(_))))
        {
            return false;
        }
        for parent in parents(path) {
            self.tree.entry(parent.to_owned()).or_insert(Thing::Directory(None));
        }
        true
    }

    fn add(&mut self, random: &mut Random, serial: usize) {
        let path = random.path();
        let is_directory = matches!(self.tree.get(&path), Some(Thing::Directory(_)));
        let is_other = self.tree.contains_key(&path) && !is_directory;
        let tar = std::mem::take(&mut self.tar);
        self.tar = match random.below(6) {
            0 | 1 if !is_directory && self.imply(&path) => {
                let data = format!("{serial}");
                self.tree.insert(path.clone(), Thing::File(data.clone()));
                tar.file(&path, &data)
            }
            2 if !is_directory && self.imply(&path) => {
                self.tree.insert(path.clone(), Thing::Link(format!("{serial}")));
                tar.symlink(&path, &format!("{serial}"))
            }
            3 if !is_other && self.imply(&path) => {
                let mode = [0o700, 0o755, 0o1777, 0o711][random.below(4)];
                self.tree.insert(path.clone(), Thing::Directory(Some(mode)));
                tar.dir(&path, mode, 0, 0)
            }
            4 if self.imply(&path) => {
                self.deleted.insert(path.clone());
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
                tar.file(&format!("{parent}/.wh.{name}"), "")
            }
            5 if !is_other && serial.is_multiple_of(3) && self.imply(&format!("{path}/x")) => {
                self.opaque.insert(path.clone());
                tar.file(&format!("{path}/.wh..wh..opq"), "")
            }
            _ => tar,
        };
    }

    /// What is seen when this layer lies on `lower`.
    fn over(&self, mut lower: Tree) -> Tree {
        for path in &self.deleted {
            lower.retain(|other, _| other != path && !is_below(other, path));
        }
        for path in &self.opaque {
            lower.retain(|other, _| !is_below(other, path));
        }
        for (path, thing) in &self.tree {
            match (thing, lower.get(path)) {
                (Thing::Directory(None), Some(Thing::Directory(_))) => continue,
                (Thing::Directory(_), _) => {}
                _ => lower.retain(|other, _| !is_below(other, path)),
            }
            lower.insert(path.clone(), thing.clone());
        }
        lower
    }
}

fn show(tree: &Tree) -> Vec<String> {
    let mut lines: Vec<String> = tree
        .iter()
        .map(|(path, thing)| match thing {
            Thing::Directory(mode) => format!("{path} {:o} 0:0 dir", mode.unwrap_or(0o755)),
            Thing::File(data) => format!("{path} 644 0:0 file {data:?}"),
            Thing::Link(target) => format!("{path} 777 0:0 -> {target}"),
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn a33_random_stacks_look_as_the_model_says() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    for image in 0..IMAGES {
        let mut layers = vec![Tar::new(); 4];
        let mut expected = Tree::new();
        for stack in 1..=STACKS {
            let mut random = Random((image * STACKS + stack).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let folder = format!("stack{stack}");
            let mut tree = Tree::new();
            for tar in layers.iter_mut().take(random.below(4) + 1) {
                let mut model = Model::default();
                for serial in 0..random.below(12) {
                    model.add(&mut random, serial);
                }
                tree = model.over(tree);
                *tar = std::mem::take(tar).append(model.tar.beneath(&folder));
            }
            if !tree.is_empty() {
                expected.insert(folder.clone(), Thing::Directory(None));
            }
            expected.extend(tree.into_iter().map(|(path, thing)| (format!("{folder}/{path}"), thing)));
        }
        let layers: Vec<Layer> = layers.into_iter().map(|tar| Layer::gzip(tar.end())).collect();
        let pulled = test.pull_layers(&layers).unwrap_or_else(|error| panic!("image {image}: {error}"));
        let shown = test.mount(&pulled).tree();
        // A folder may be there whose contents are all deleted.
        let shown: Vec<String> = shown
            .into_iter()
            .filter(|line| line.contains('/') || expected.contains_key(line.split(' ').next().unwrap()))
            .collect();
        assert_eq!(shown, show(&expected), "image {image}");
    }
}
