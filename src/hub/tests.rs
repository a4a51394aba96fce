//! Downloads from a hub on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::loopback::{COMMIT, LoopbackHub, Scripted, TOKEN};
use super::*;
use crate::error::Error;

const WEIGHTS: &str = "model.safetensors";

/// A hub with the model `me/m`: a configuration and 300,000 bytes of weights.
fn loopback() -> (LoopbackHub, Vec<u8>) {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
    let hub = LoopbackHub::serve(BTreeMap::from([
        ("me/m/config.json".into(), b"{}".to_vec()),
        (format!("me/m/{WEIGHTS}"), weights.clone()),
        (
            "datasets/me/toys/data/rows.jsonl".into(),
            b"{\"a\": 1}\n".to_vec(),
        ),
    ]));
    (hub, weights)
}

fn settings(hub: &LoopbackHub, root: &TempDir) -> HubSettings {
    HubSettings {
        endpoint: hub.endpoint.clone(),
        cache: root.path().join("hub"),
        token: None,
        offline: false,
        progress: false,
        retry_wait: Duration::from_millis(1),
    }
}

fn client(hub: &LoopbackHub, root: &TempDir) -> Hub {
    Hub::new(settings(hub, root))
}

fn model() -> Repo {
    Repo::model("me/m", MAIN)
}

/// First bytes of the requests for the weights' content.
fn ranges(hub: &LoopbackHub) -> Vec<Option<usize>> {
    let seen = hub.seen();
    let contents = seen.iter().filter(|request| request.redirected);
    contents.map(|request| request.from).collect()
}

fn status(status: u16, code: &str, message: &str) -> Scripted {
    Scripted::Status(
        status,
        vec![
            ("X-Error-Code", code.to_owned()),
            ("X-Error-Message", message.to_owned()),
        ],
    )
}

#[test]
fn files_lie_in_the_cache_as_python_keeps_them() {
    let (server, weights) = loopback();
    let root = tempfile::tempdir().unwrap();
    let hub = client(&server, &root);
    let listing = hub.listing(&model()).unwrap();
    assert_eq!(listing.commit, COMMIT);
    assert_eq!(listing.file(WEIGHTS).unwrap().bytes, 300_000);
    assert_eq!(hub.snapshot(&model()), None);
    let names = ["config.json".to_owned(), WEIGHTS.to_owned()];
    let folder = hub.files(&model(), &listing, &names).unwrap();
    let repo = root.path().join("hub/models--me--m");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    // echo -n '{}' | git hash-object --stdin
    let blob = "9e26dfeeb6e641a33dae4961196235bdb965b21b";
    assert_eq!(
        fs::read_to_string(repo.join("blobs").join(blob)).unwrap(),
        "{}"
    );
    if cfg!(unix) {
        let link = fs::read_link(folder.join("config.json")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(blob));
    }
    assert_eq!(hub.snapshot(&model()), Some(folder.clone()));
    assert_eq!(hub.snapshot(&model().at(COMMIT)), Some(folder.clone()));
    let cached = hub.cached_models();
    assert_eq!((cached[0].id.as_str(), cached[0].bytes), ("me/m", 300_002));
    // Nothing is asked for a second time.
    let before = server.seen().len();
    hub.files(&model(), &listing, &names).unwrap();
    assert_eq!(hub.file(&model(), WEIGHTS).unwrap(), folder.join(WEIGHTS));
    assert_eq!(server.seen().len(), before);
    // A data set's file lies in a folder of the repository.
    server.add_revision("refs/convert/x");
    let toys = Repo::dataset("me/toys", "refs/convert/x");
    let path = hub.file(&toys, "data/rows.jsonl").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\": 1}\n");
    assert_eq!(
        repository_of(&path),
        Some(format!("datasets/me/toys@{COMMIT}"))
    );
    assert_eq!(hub.commit(&toys).as_deref(), Some(COMMIT));
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (server, _) = loopback();
    server.gate("me/m");
    let root = tempfile::tempdir().unwrap();
    let hub = Hub::new(HubSettings {
        token: Token::new(TOKEN, "HF_TOKEN"),
        ..settings(&server, &root)
    });
    hub.file(&model(), WEIGHTS).unwrap();
    let token = |redirected| {
        let seen = server.seen();
        let of = seen
            .iter()
            .filter(move |seen| seen.redirected == redirected);
        of.map(|seen| seen.token.clone()).collect::<Vec<_>>()
    };
    let bearer = Some(format!("Bearer {TOKEN}"));
    assert_eq!(token(false), [bearer.clone(), bearer]);
    assert_eq!(token(true), [None]);
}

#[test]
fn refusals_are_in_the_hubs_words_with_what_to_do() {
    let (server, _) = loopback();
    server.gate("me/m");
    let root = tempfile::tempdir().unwrap();
    let hub = client(&server, &root);
    let host = server.endpoint.trim_start_matches("http://");
    let error = hub.listing(&model()).unwrap_err();
    assert_eq!(error.reason, Reason::Denied);
    assert_eq!(
        error.to_string(),
        format!(
            "me/m: {host} says \"Access to model me/m is restricted and you are not in the authorized list\". Ask for access at http://{host}/me/m; \
             no token was sent: set HF_TOKEN to one from http://{host}/settings/tokens, or run `hf auth login`"
        )
    );
    assert_eq!(Error::from(error).exit_code(), 2);
    let other = Hub::new(HubSettings {
        token: Token::new("hf_other", "HF_TOKEN"),
        ..settings(&server, &root)
    });
    let error = other.file(&model(), WEIGHTS).unwrap_err();
    assert_eq!(
        (error.reason, error.place.as_str()),
        (Reason::Denied, "me/m/model.safetensors@main")
    );
    assert!(
        error.message.ends_with("the token of HF_TOKEN was sent"),
        "{error}"
    );
    // A repository that is not there, or may not be seen.
    let nobody = Repo::model("me/nobody", MAIN);
    for hub in [&hub, &other] {
        let error = hub.listing(&nobody).unwrap_err();
        assert_eq!(error.reason, Reason::NoRepository);
        assert!(
            error
                .message
                .contains("no such repository, or it is private"),
            "{error}"
        );
    }
    let toys = Repo::dataset("me/toys", MAIN);
    let error = hub.listing(&toys.at("v9")).unwrap_err();
    assert_eq!(error.reason, Reason::NoRevision);
    assert!(
        error
            .to_string()
            .starts_with("me/toys@v9: there is no branch, tag or commit `v9`"),
        "{error}"
    );
    let error = hub.file(&toys, "none.jsonl").unwrap_err();
    assert_eq!(error.reason, Reason::NoFile);
    assert_eq!(
        error.to_string(),
        "me/toys/none.jsonl@main: the repository has no such file"
    );
    server.next(
        "api/",
        status(401, "", "Invalid credentials in Authorization header"),
    );
    let error = other.listing(&toys).unwrap_err();
    assert_eq!(error.reason, Reason::Denied);
    server.next("api/", status(403, "", "Blocked by the resource group"));
    let error = hub.listing(&toys).unwrap_err();
    assert!(
        error
            .message
            .contains("says \"Blocked by the resource group\""),
        "{error}"
    );
    // Names that leave the folder are no files.
    assert_eq!(
        hub.file(&toys, "../../x").unwrap_err().reason,
        Reason::NoFile
    );
}

#[test]
fn what_passes_is_tried_again() {
    let (server, weights) = loopback();
    let root = tempfile::tempdir().unwrap();
    let hub = client(&server, &root);
    let wait = || vec![("Retry-After", "0".to_owned())];
    server.next("api/", Scripted::Status(429, wait()));
    server.next("api/", Scripted::Status(503, Vec::new()));
    let listing = hub.listing(&model()).unwrap();
    assert_eq!(server.seen().len(), 3);
    server.next("GET me/m", Scripted::Status(502, Vec::new()));
    let folder = hub
        .files(&model(), &listing, &[WEIGHTS.to_owned()])
        .unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights);
    for _ in 0..5 {
        server.next("api/", Scripted::Status(429, wait()));
    }
    let error = hub.listing(&model()).unwrap_err();
    assert_eq!(error.reason, Reason::Unreachable);
    assert!(error.message.ends_with("answers 429"), "{error}");
    // Nobody listens.
    let nobody = Hub::new(HubSettings {
        endpoint: "http://127.0.0.1:1".into(),
        ..settings(&server, &root)
    });
    let error = nobody.listing(&model()).unwrap_err();
    assert_eq!(error.reason, Reason::Unreachable);
    assert!(
        error.message.starts_with("cannot reach 127.0.0.1:1: "),
        "{error}"
    );
    assert_eq!(Error::from(error).exit_code(), 1);
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let (server, weights) = loopback();
    let root = tempfile::tempdir().unwrap();
    let hub = client(&server, &root);
    server.next("GET me/m", Scripted::CutAfter(100_000));
    server.next("GET me/m", Scripted::CutAfter(50_000));
    let path = hub.file(&model(), WEIGHTS).unwrap();
    assert_eq!(fs::read(&path).unwrap(), weights);
    assert_eq!(ranges(&server), [None, Some(100_000), Some(150_000)]);
    // What another process left is taken up, unless the server sends the whole file.
    for (scripted, first) in [(None, 7), (Some(Scripted::NoRange), 8)] {
        let blob = fs::canonicalize(&path).unwrap();
        let part = blob.with_extension("incomplete");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        fs::rename(&blob, &part).unwrap();
        fs::File::options()
            .write(true)
            .open(&part)
            .unwrap()
            .set_len(first)
            .unwrap();
        if let Some(scripted) = scripted {
            server.next("GET me/m", scripted);
        }
        assert_eq!(
            fs::read(hub.file(&model(), WEIGHTS).unwrap()).unwrap(),
            weights
        );
        assert_eq!(ranges(&server).last(), Some(&Some(first as usize)));
        assert!(!part.exists());
    }
    // A connection that brings nothing more is given up, and what came stays.
    fs::remove_dir_all(root.path().join("hub")).unwrap();
    server.next("GET me/m", Scripted::CutAfter(9));
    for _ in 0..5 {
        server.next("GET me/m", Scripted::CutAfter(0));
    }
    let error = hub.file(&model(), WEIGHTS).unwrap_err();
    assert_eq!(error.reason, Reason::Unreachable);
    assert!(
        error.message.contains("the first 9 bytes are kept"),
        "{error}"
    );
    assert_eq!(hub.cached(&model(), WEIGHTS), None);
    hub.file(&model(), WEIGHTS).unwrap();
    assert_eq!(ranges(&server).last(), Some(&Some(9)));
}

#[test]
fn other_content_than_announced_is_not_used() {
    let (server, weights) = loopback();
    let root = tempfile::tempdir().unwrap();
    let hub = client(&server, &root);
    let mut other = weights.clone();
    other[1000] ^= 1;
    server.next("GET me/m", Scripted::OtherBytes(other.clone()));
    let error = hub.file(&model(), WEIGHTS).unwrap_err();
    assert_eq!(error.reason, Reason::Corrupt);
    assert!(
        error.message.starts_with("expected content with the hash "),
        "{error}"
    );
    assert_eq!(hub.cached(&model(), WEIGHTS), None);
    // A small file is compared with git's hash.
    server.next("GET me/m", Scripted::OtherBytes(b"[]".to_vec()));
    let error = hub.file(&model(), "config.json").unwrap_err();
    assert_eq!(error.reason, Reason::Corrupt);
    // The beginning of a download may be spoilt by a crash: it is thrown away, once.
    let path = hub.file(&model(), WEIGHTS).unwrap();
    let blob = fs::canonicalize(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::remove_file(&blob).unwrap();
    fs::write(blob.with_extension("incomplete"), &other[..2000]).unwrap();
    assert_eq!(
        fs::read(hub.file(&model(), WEIGHTS).unwrap()).unwrap(),
        weights
    );
    // A truncated content is downloaded again.
    fs::remove_file(&path).unwrap();
    fs::write(&blob, &weights[..5]).unwrap();
    assert_eq!(
        fs::read(hub.file(&model(), WEIGHTS).unwrap()).unwrap(),
        weights
    );
}

#[test]
fn offline_the_cache_alone_is_used() {
    let (server, _) = loopback();
    let root = tempfile::tempdir().unwrap();
    let path = client(&server, &root)
        .file(&model(), "config.json")
        .unwrap();
    let before = server.seen().len();
    let hub = Hub::new(HubSettings {
        offline: true,
        ..settings(&server, &root)
    });
    assert_eq!(hub.file(&model(), "config.json").unwrap(), path);
    let error = hub.file(&model(), WEIGHTS).unwrap_err();
    assert_eq!(error.reason, Reason::Offline);
    assert_eq!(
        error.to_string(),
        "me/m/model.safetensors@main: not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
    );
    assert_eq!(server.seen().len(), before);
}

/// A whole answer in JSON.
fn json(body: &str) -> Scripted {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    Scripted::Raw([head.as_bytes(), body.as_bytes()].concat())
}

/// Everything below a folder.
fn names_below(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names_below(&entry.path(), found);
        }
    }
}

#[test]
fn nothing_that_a_server_says_is_a_path() {
    let (server, _) = loopback();
    let root = tempfile::tempdir().unwrap();
    let hub = client(&server, &root);
    for (body, what) in [
        (r#"{"sha": "../../../pwned", "siblings": []}"#, "commit"),
        (r#"{"sha": "a/b", "siblings": []}"#, "commit"),
        (r#"{"sha": "", "siblings": []}"#, "commit"),
        (
            r#"{"sha": "c0ffee", "siblings": [{"rfilename": "../pwned"}]}"#,
            "file",
        ),
        (
            r#"{"sha": "c0ffee", "siblings": [{"rfilename": "/tmp/pwned"}]}"#,
            "file",
        ),
        (
            r#"{"sha": "c0ffee", "siblings": [{"rfilename": "a\u001b[2Jpwned"}]}"#,
            "file",
        ),
    ] {
        server.next("api/", json(body));
        let error = hub.listing(&model()).unwrap_err();
        assert_eq!(error.reason, Reason::Corrupt, "{body}");
        assert!(
            error.message.contains(&format!("names a {what} \"")),
            "{error}"
        );
        assert!(!error.message.contains('\u{1b}'), "{error}");
    }
    // Headers of a file.
    for (commit, etag) in [("../../pwned", "\"aa\""), ("c0ffee", "\"../../pwned\"")] {
        let headers = vec![
            ("X-Repo-Commit", commit.to_owned()),
            ("ETag", etag.to_owned()),
        ];
        server.next("HEAD me/m", Scripted::Status(200, headers));
        let error = hub.file(&model(), "config.json").unwrap_err();
        assert_eq!(error.reason, Reason::Unreachable, "{error}");
    }
    let mut names = Vec::new();
    names_below(root.path(), &mut names);
    assert!(
        !names.iter().any(|name| name.contains("pwned")),
        "{names:?}"
    );
}

#[test]
fn bodies_and_announced_sizes_are_bounded() {
    let (server, _) = loopback();
    let root = tempfile::tempdir().unwrap();
    let hub = client(&server, &root);
    // A list that does not end.
    server.next("api/", json(&" ".repeat(MOST_JSON as usize + 2)));
    let error = hub.listing(&model()).unwrap_err();
    assert!(
        error.message.ends_with("the answer has more than 67.11 MB"),
        "{error}"
    );
    // More than any disk has free.
    let headers = vec![
        ("X-Repo-Commit", COMMIT.to_owned()),
        ("X-Linked-Etag", "ab".repeat(32)),
        ("X-Linked-Size", u64::MAX.to_string()),
    ];
    server.next("HEAD me/m", Scripted::Status(200, headers));
    let error = hub.file(&model(), WEIGHTS).unwrap_err();
    assert_eq!(error.reason, Reason::Cache, "{error}");
    assert!(error.message.contains(" free; make room"), "{error}");
}
