//! `temper report`, and the pages of a run in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{fail, succeed};

/// Chromium by the environment or the search path; the test's HTML checks do without.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let on_path = std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.is_file());
    named.or(on_path)
}

/// Opens `page` in a headless browser and returns what it logs and the page as the browser understood it.
fn open(browser: &Path, page: &Path, profile: &Path) -> (String, String) {
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--enable-logging=stderr",
            "--v=0",
            "--virtual-time-budget=1000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stderr), text(&output.stdout))
}

const RECIPE: &str = r#"(
    name: "two", model: "tiny", stages: [
        Rank(name: "rank", init: Base, data: (source: Posts(rows: 8, seed: 4)), num_responses: 2, response_length: 4,
            reward: Gold, generation_batch_size: 16),
        Compare(name: "compare", policies: [Base], data: (source: Posts(rows: 4, seed: 8)), rewards: {"gold": Gold},
            response_length: 4),
    ],
)"#;

#[test]
fn a_run_has_a_page_that_a_browser_opens_without_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    std::fs::write(folder.join("two.ron"), RECIPE).unwrap();
    // The plan with times leaves nothing behind.
    let plan = succeed(folder, "recipe two.ron --dry-run");
    let times = plan
        .lines()
        .take(3)
        .filter(|line| line.contains("~"))
        .count();
    assert_eq!(times, 2, "{plan}");
    assert!(plan.contains("\nestimated time: ~"), "{plan}");
    assert!(!folder.join("run").exists());
    succeed(folder, "recipe two.ron --output run --stage rank");
    // One of two stages is done, and the page is there.
    let text = succeed(folder, "report run");
    assert!(text.starts_with("two: 1 of 2 stages are done"), "{text}");
    assert!(text.contains("| compare | Compare | waiting |"), "{text}");
    let next = "Continue: temper recipe run/recipe.ron --output run --resume";
    assert!(text.contains(next), "{text}");
    let closing = succeed(folder, "recipe run/recipe.ron --output run --resume");
    let text = succeed(folder, "report run");
    assert!(text.starts_with("two: all 2 stages are done"), "{text}");
    let table = &closing[closing.find("| policy").unwrap()..closing.find("Report:").unwrap()];
    assert!(text.contains(table.trim()), "{text}\n{closing}");

    // Event files of a run that wrote none, once however often they are asked for.
    for _ in 0..2 {
        succeed(folder, "report run --tensorboard");
    }
    for stage in ["rank", "compare"] {
        let names = std::fs::read_dir(folder.join("run").join(stage)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let files = names.filter(|name| name.contains("tfevents")).count();
        assert_eq!(files, 1, "{stage}");
    }
    let page = folder.join("run/report.html");
    let html = std::fs::read_to_string(&page).unwrap();
    for part in [
        "<h2>Pipeline</h2>",
        "Scores of the responses",
        "href=\"rank/report.html\"",
    ] {
        assert!(html.contains(part), "{part}");
    }
    let Some(browser) = chromium() else {
        eprintln!("no Chromium in CHROMIUM or PATH: the page was not opened in a browser");
        return;
    };
    for name in ["run/report.html", "run/compare/report.html"] {
        let (log, seen) = open(&browser, &folder.join(name), &folder.join("profile"));
        assert!(!log.contains("CONSOLE"), "{log}");
        let svgs = std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(seen.matches("<svg").count(), svgs.matches("<svg").count());
        assert!(seen.contains("</html>"), "{seen}");
    }
}

#[test]
fn folders_without_a_run_are_refused_with_what_was_expected() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    std::fs::create_dir_all(folder.join("run/sft")).unwrap();
    let expected = "expected the folder of a run";
    fail(folder, "report nowhere", 2, &[expected, "no such folder"]);
    fail(folder, "report run", 2, &[expected, "no recipe.ron"]);
    std::fs::write(folder.join("run/recipe.ron"), RECIPE).unwrap();
    fail(folder, "report run/sft", 2, &[expected, "its run is run"]);
    fail(
        folder,
        "report run/recipe.ron",
        2,
        &[expected, "this is a file"],
    );
}
