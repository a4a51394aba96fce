//! Uploads to a hub on this machine.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::error::Error;
use crate::hub::push_hub::{Fault, PushHub, WRITE_TOKEN};
use crate::hub::{HubSettings, Token};

/// 250,000 bytes of weights, a configuration, a file in a folder, and one that the repository ignores.
fn folder() -> (TempDir, Vec<PushFile>) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("sub")).unwrap();
    let weights: Vec<u8> = (0..250_000u32).map(|i| (i / 11) as u8).collect();
    let contents: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("model.safetensors", &weights),
        ("sub/a b.txt", "é".as_bytes()),
        ("x.ignored", b"x"),
    ];
    let files = contents.map(|(name, content)| {
        let path = root.path().join(name);
        fs::write(&path, content).unwrap();
        let name = name.to_owned();
        PushFile { name, path }
    });
    (root, files.into())
}

fn hub(server: &PushHub, token: Option<&str>) -> Hub {
    Hub::new(HubSettings {
        endpoint: server.endpoint.clone(),
        cache: "none".into(),
        token: token.and_then(|token| Token::new(token, "HF_TOKEN")),
        offline: false,
        progress: false,
        retry_wait: Duration::from_millis(1),
    })
}

fn push(
    server: &PushHub,
    files: &[PushFile],
    private: bool,
    branch: &str,
) -> Result<Pushed, HubError> {
    hub(server, Some(WRITE_TOKEN)).push(&Push {
        repo: &Repo::model("me/m", branch),
        files,
        private,
        summary: "Upload",
    })
}

#[test]
fn a_folder_is_committed_once_and_only_what_changed_later() {
    for chunk in [None, Some(100_000), Some(250_000)] {
        let server = PushHub::serve(chunk);
        let (root, files) = folder();
        let pushed = push(&server, &files, true, MAIN).unwrap();
        assert_eq!(pushed.page, format!("{}/me/m", server.endpoint));
        assert_eq!(
            (
                pushed.created,
                pushed.committed,
                pushed.sent,
                pushed.ignored
            ),
            (true, 3, 250_000, 1)
        );
        assert_eq!(server.is_private("me/m"), Some(true));
        let weights = fs::read(root.path().join("model.safetensors")).unwrap();
        assert_eq!(server.file("main/model.safetensors").unwrap(), weights);
        assert_eq!(server.file("main/sub/a b.txt").unwrap(), "é".as_bytes());
        let puts = chunk.map_or(1, |chunk| 250_000usize.div_ceil(chunk));
        assert_eq!(server.count("PUT "), puts, "{chunk:?}");
        // Nothing is sent a second time.
        let again = push(&server, &files, true, MAIN).unwrap();
        assert_eq!(
            (again.created, again.commit.clone(), again.unchanged),
            (false, None, 3)
        );
        assert_eq!((server.count("PUT "), server.count("/commit/")), (puts, 1));
        fs::write(root.path().join("config.json"), "{\"a\": 1}").unwrap();
        let changed = push(&server, &files, true, MAIN).unwrap();
        assert_eq!(
            (changed.committed, changed.sent, changed.unchanged),
            (1, 0, 2)
        );
        assert_eq!(server.file("main/config.json").unwrap(), b"{\"a\": 1}");
        // Another branch has no file, but the hub has the content.
        let branch = push(&server, &files, false, "v1").unwrap();
        assert_eq!((branch.committed, branch.present, branch.sent), (3, 1, 0));
        assert_eq!(server.count("PUT "), puts);
        // An existing repository stays as it is.
        assert_eq!(server.is_private("me/m"), Some(true));
    }
}

#[test]
fn what_passes_is_tried_again_and_what_was_sent_is_kept() {
    let server = PushHub::serve(Some(100_000));
    let (root, mut files) = folder();
    for (what, fault) in [
        ("repos/create", Fault::Status(503, "busy")),
        ("objects/batch", Fault::Status(429, "slow down")),
        ("PUT store", Fault::CutAfter(40_000)),
        ("PUT store", Fault::Status(500, "")),
        ("complete", Fault::CutAfter(0)),
        ("/commit/", Fault::Status(502, "")),
    ] {
        server.next(what, fault);
    }
    let pushed = push(&server, &files, true, MAIN).unwrap();
    assert_eq!((pushed.committed, pushed.sent), (3, 250_000));
    // The first of three parts took three tries.
    assert_eq!(server.count("PUT "), 5);
    // A second large file fails for good: the try after it sends that alone.
    for (name, byte) in [("a.safetensors", 1), ("b.safetensors", 2)] {
        let path = root.path().join(name);
        fs::write(&path, vec![byte; 50_000]).unwrap();
        let name = name.to_owned();
        files.push(PushFile { name, path });
    }
    let other = format!("{:x}", Sha256::digest(vec![2; 50_000]));
    for _ in 0..5 {
        server.next(&format!("PUT store/{other}"), Fault::CutAfter(10));
    }
    let before = server.count("PUT ");
    let error = push(&server, &files, true, MAIN).unwrap_err();
    assert_eq!(error.reason, Reason::Unreachable);
    assert!(error.message.contains("need not be sent again"), "{error}");
    assert_eq!(Error::from(error).exit_code(), 1);
    assert_eq!(server.count("PUT ") - before, 6);
    assert_eq!(server.file("main/a.safetensors"), None, "all or nothing");
    let pushed = push(&server, &files, true, MAIN).unwrap();
    assert_eq!(
        (pushed.committed, pushed.present, pushed.sent),
        (2, 1, 50_000)
    );
    assert_eq!(server.count("PUT ") - before, 7);
}

#[test]
fn refusals_say_what_to_do_and_never_the_token() {
    let server = PushHub::serve(None);
    let (_root, files) = folder();
    let of = |token: Option<&str>| {
        let repo = Repo::model("me/m", MAIN);
        let push = Push {
            repo: &repo,
            files: &files,
            private: true,
            summary: "Upload",
        };
        hub(&server, token).push(&push).unwrap_err()
    };
    let error = of(None);
    assert!(
        error
            .message
            .starts_with("an upload needs a token that may write: set HF_TOKEN"),
        "{error}"
    );
    assert!(server.seen().is_empty());
    let error = of(Some("hf_secret"));
    assert!(
        error.message.contains("the token of HF_TOKEN is not valid"),
        "{error}"
    );
    server.next(
        "repos/create",
        Fault::Status(
            403,
            "You don't have the rights to create a model under this namespace.",
        ),
    );
    let error = of(Some(WRITE_TOKEN));
    assert_eq!(error.reason, Reason::Denied);
    assert!(
        error.message.contains("rights to create") && error.message.contains("may not write to me"),
        "{error}"
    );
    for error in [of(Some("hf_secret")), error] {
        assert!(
            !error.to_string().contains("hf_secret") && !error.to_string().contains(WRITE_TOKEN)
        );
        assert_eq!(Error::from(error).exit_code(), 2);
    }
    // A token that may write and not make repositories.
    push(&server, &files, true, MAIN).unwrap();
    server.next("repos/create", Fault::Status(403, "no rights to create"));
    let again = push(&server, &files, true, MAIN).unwrap();
    assert_eq!((again.created, again.unchanged), (false, 3));
    let puts = server.count("PUT ");
    for _ in 0..5 {
        server.next("preupload", Fault::Status(500, "broken"));
    }
    let error = of(Some(WRITE_TOKEN));
    assert!(error.message.ends_with("says \"broken\""), "{error}");
    assert_eq!(server.count("PUT "), puts);
}
