//! The commit of a git work tree, read from its files.
//!
//! git itself is not run: the configuration of a downloaded folder can make it start programs (`core.fsmonitor`, filters, hooks).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Most symbolic references to follow.
const MOST_REFS: usize = 5;
/// Largest reference file in bytes.
const MOST_BYTES: u64 = 4096;

/// The commit checked out in the work tree around `folder`; `None` outside a work tree, before its first commit, and where
/// references are not stored as files.
pub(super) fn commit(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let dot_git = folder.ancestors().map(|above| above.join(".git"));
    let git_dir = git_dir(&dot_git.into_iter().find(|path| path.exists())?)?;
    // A linked work tree has its own HEAD and shares the references.
    let common = match read_line(&git_dir.join("commondir")) {
        Some(common) => git_dir.join(common),
        None => git_dir.clone(),
    };
    let mut content = read_line(&git_dir.join("HEAD"))?;
    for _ in 0..MOST_REFS {
        let Some(name) = content.strip_prefix("ref:") else {
            return is_commit(&content).then_some(content);
        };
        let name = name.trim();
        if !is_ref_name(name) {
            return None;
        }
        content = read_line(&git_dir.join(name))
            .or_else(|| read_line(&common.join(name)))
            .or_else(|| packed(&common.join("packed-refs"), name))?;
    }
    None
}

/// The git folder: `.git` itself, or the folder that a file of that name points to.
fn git_dir(dot_git: &Path) -> Option<PathBuf> {
    if dot_git.is_dir() {
        return Some(dot_git.to_path_buf());
    }
    let line = read_line(dot_git)?;
    let target = line.strip_prefix("gitdir:")?.trim();
    Some(dot_git.parent()?.join(target))
}

/// The first line of a regular file.
fn read_line(path: &Path) -> Option<String> {
    let mut text = String::new();
    open(path)?
        .take(MOST_BYTES)
        .read_to_string(&mut text)
        .ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

/// The commit of a reference in `packed-refs`, whose lines are `<commit> <name>`.
fn packed(path: &Path, name: &str) -> Option<String> {
    BufReader::new(open(path)?)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let (commit, found) = line.split_once(' ')?;
            (found.trim_end() == name).then(|| commit.to_owned())
        })
}

/// Opens a file if it is regular: opening a FIFO could block for ever.
fn open(path: &Path) -> Option<File> {
    fs::metadata(path).ok()?.is_file().then_some(())?;
    File::open(path).ok()
}

/// Whether `text` is a SHA-1 or SHA-256 in hexadecimal.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether `name` is a reference inside the git folder.
fn is_ref_name(name: &str) -> bool {
    name.starts_with("refs/") && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef01234567";
    const B: &str = "89abcdef0123456789abcdef0123456789abcdef";

    /// Files of a folder, by path.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn commit_of(files: &[(&str, &str)]) -> Option<String> {
        commit(tree(files).path())
    }

    #[test]
    fn a_branch_is_read_loose_or_packed() {
        let head = (".git/HEAD", "ref: refs/heads/main\n");
        let loose = format!("{A}\n");
        let loose = (".git/refs/heads/main", loose.as_str());
        let packed =
            format!("# pack-refs with: peeled\n{A} refs/heads/mainly\n{B} refs/heads/main\n^{A}\n");
        let packed = (".git/packed-refs", packed.as_str());
        assert_eq!(commit_of(&[head, loose]).as_deref(), Some(A));
        assert_eq!(commit_of(&[head, packed]).as_deref(), Some(B));
        // The loose one is the newer.
        assert_eq!(commit_of(&[head, loose, packed]).as_deref(), Some(A));
        assert_eq!(commit_of(&[(".git/HEAD", A)]).as_deref(), Some(A));
        // Before the first commit, and outside any work tree.
        assert_eq!(commit_of(&[head]), None);
        assert_eq!(commit_of(&[]), None);
    }

    #[test]
    fn folders_below_and_linked_work_trees_have_a_commit() {
        let loose = format!("{A}\n");
        let folder = tree(&[
            ("main/.git/HEAD", "ref: refs/heads/main\n"),
            ("main/.git/refs/heads/main", B),
            ("main/.git/refs/heads/other", &loose),
            ("main/.git/worktrees/w/HEAD", "ref: refs/heads/other\n"),
            ("main/.git/worktrees/w/commondir", "../..\n"),
            ("main/inner/deep/x", ""),
            ("w/.git", "gitdir: ../main/.git/worktrees/w\n"),
        ]);
        let at = |path: &str| commit(&folder.path().join(path));
        assert_eq!(at("main/inner/deep").as_deref(), Some(B));
        assert_eq!(at("w").as_deref(), Some(A));
    }

    #[test]
    fn hostile_folders_have_none() {
        for head in [
            "ref: refs/../../secret\n",
            "ref: /etc/passwd\n",
            "ref: refs/heads/circle\n",
            "not a commit\n",
            "",
        ] {
            let files = [
                (".git/HEAD", head),
                (".git/refs/heads/circle", "ref: refs/heads/circle"),
                ("secret", A),
            ];
            assert_eq!(commit_of(&files), None, "{head}");
        }
    }
}
