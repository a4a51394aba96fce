//! Data of one's own: files of every format, layouts that are recognised, and messages for what cannot be read.

use super::*;

/// A folder with the tiny model as `m`, which has a chat template.
fn workplace() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    checked(
        temp.path(),
        SFT,
        b"{\"prompt\":\"a\",\"completion\":\" b\"}\n",
    );
    temp
}

/// The outcome of a dry run.
fn planned(folder: &Path, header: &str, stages: &str) -> Output {
    let recipe = format!("(name: \"r\", model: \"m\", {header} stages: [{stages}])");
    fs::write(folder.join("r.ron"), recipe).unwrap();
    temper(folder, "recipe r.ron --dry-run --no-time")
}

/// The stage with a data set in place of `DATA`.
fn with(stage: &str, data: &str) -> String {
    stage.replace("DATA", &format!("data: {data}"))
}

/// The number of rows that the plan of a stage counts.
fn rows_of(output: &Output) -> usize {
    assert!(output.status.success(), "{}", stderr(output));
    let table = stdout(output);
    let column = |line: &str, at: usize| line.split_whitespace().nth(at).map(str::to_owned);
    let lines: Vec<&str> = table.lines().collect();
    // "824.4 k" is two words.
    let words = |line: &str| line.replace(" k ", "k ");
    let head = lines
        .iter()
        .position(|line| line.starts_with("stage"))
        .unwrap();
    let at = (lines[head].split_whitespace())
        .position(|name| name == "rows")
        .unwrap();
    column(&words(lines[head + 1]), at)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn odd_files_are_right_or_refused_with_their_line() {
    let temp = workplace();
    let folder = temp.path();
    // Name, content, and the number of rows or parts of the one message.
    let long = format!(
        "{{\"prompt\":\"a\",\"completion\":\"{}\"}}\n",
        "a b ".repeat(50_000)
    );
    let cases: [(&str, &[u8], Result<usize, &str>); 33] = [
        ("plain.csv", b"prompt,completion\na, b\nc, d\n", Ok(2)),
        ("mark.csv", b"\xef\xbb\xbfprompt,completion\r\na, b\r\n\r\nc, d\r\n", Ok(2)),
        ("breaks.csv", b"prompt,completion\n\"a\n\nb\",\"c, \"\"d\"\"\"\n", Ok(1)),
        ("semicolons.csv", b"prompt;completion\na; b, c\n", Ok(1)),
        ("tabs.tsv", b"prompt\tcompletion\na\t b\n", Ok(1)),
        ("array.json", b"\xef\xbb\xbf[\n {\"prompt\": \"a\", \"completion\": \" b\"}\n]\n", Ok(1)),
        ("lines.ndjson", b"{\"prompt\":\"a\",\"completion\":\" b\"}\r\n\r\n", Ok(1)),
        ("no_ending", b"{\"prompt\":\"a\",\"completion\":\" b\"}\n", Ok(1)),
        ("alpaca.csv", b"instruction,input,output\ni,,o\n", Ok(1)),
        (
            "sharegpt.jsonl",
            b"{\"conversations\":[{\"from\":\"human\",\"value\":\"h\"},{\"from\":\"gpt\",\"value\":\"g\"}]}\n",
            Ok(1),
        ),
        ("empty.csv", b"", Err("empty.csv: no rows: the file is empty")),
        ("header.csv", b"prompt,completion\n", Err("header.csv: no rows")),
        ("short.csv", b"prompt,completion\na, b\nc\n", Err("short.csv:3: expected 2 fields as in the first line, found 1")),
        ("bytes.csv", b"prompt,completion\na,\xff\n", Err("bytes.csv:2: expected UTF-8, found other bytes")),
        ("wide.csv", b"\xff\xfep\0,\0c\0\n\0", Err("wide.csv: expected UTF-8, found UTF-16 or UTF-32")),
        ("sheet.xlsx", b"PK\x03\x04....", Err("found a spreadsheet: save its sheet as CSV")),
        ("null.jsonl", b"{\"prompt\":\"a\",\"completion\":null}\n", Err("null.jsonl:1: column `completion` is null")),
        (
            "half.jsonl",
            b"{\"prompt\":\"a\",\"completion\":\" b\"}\n{\"prompt\":\"x \\ud83d y\",\"completion\":\" b\"}\n",
            Err("half.jsonl:2: lone surrogate \\ud83d at column 14"),
        ),
        ("braces.jsonl", b"{}\n", Err("braces.jsonl:1: expected `prompt` and `completion`, or `messages`; the row has no columns")),
        (
            "slip.csv",
            b"promt,completion\na, b\n",
            Err("slip.csv:2: expected `prompt` beside `completion`; the row has the columns `promt`, `completion`; did you mean `prompt` by `promt`?"),
        ),
        (
            "unknown.csv",
            b"id,body\n1,b\n",
            Err("name its columns in templates, as in `format: (prompt: \"{{ id }}\")`. Layouts that are recognised: ShareGPT's ("),
        ),
        (
            "kto.jsonl",
            b"{\"prompt\":\"a\",\"completion\":\" b\",\"label\":false}\n",
            Err("kto.jsonl:1: the columns `prompt`, `completion` and `label` (true, false) are KTO's: this stage would train on completions with a false label, too"),
        ),
        (
            "role.jsonl",
            b"{\"conversations\":[{\"from\":\"humann\",\"value\":\"h\"}]}\n",
            Err("role.jsonl:1: column `conversations`, turn 1: is from `humann`"),
        ),
        ("one_line.json", b"[{\"prompt\":\"a]\\\"\",\"completion\":\" b\"},{\"prompt\":\"c\",\"completion\":\" d\"}]", Ok(2)),
        ("lines.csv", b"{\"prompt\":\"a\",\"completion\":\" b\"}\n", Ok(1)),
        ("escaped.jsonl", b"{\"prompt\":\"a\\u0000\",\"completion\":\" b\"}\n", Ok(1)),
        ("long.jsonl", long.as_bytes(), Ok(1)),
        (
            "comma.json",
            b"[{\"prompt\":\"a\",\"completion\":\" b\"},\n]\n",
            Err("comma.json: begins as a JSON array of rows but cannot be parsed as one: trailing comma at line 2 column 1"),
        ),
        (
            "quotes.json",
            b"[{\"prompt\":\"a\",\"completion\":\" b\"},\n{'prompt':\"a\"}]\n",
            Err("quotes.json:2: cannot be parsed: key must be a string at line 1 column 2 of the row"),
        ),
        ("nul.jsonl", b"{\"prompt\":\"a\0\",\"completion\":\" b\"}\n", Err("nul.jsonl: expected parquet, a JSON array, JSONL, CSV or plain text, found binary data")),
        (
            "twice.jsonl",
            b"{\"prompt\":\"a\",\"prompt\":\"b\",\"completion\":\" c\"}\n",
            Err("twice.jsonl:1: the key `prompt`"),
        ),
        (
            "number.jsonl",
            b"{\"prompt\":5,\"completion\":\" b\"}\n",
            Err("number.jsonl:1: column `prompt`: expected a string or a list of messages, found a number"),
        ),
        ("text.csv", b"text\njust text\n", Err("a row with `text` alone has no completion: use a Pretrain stage")),
    ];
    for (name, bytes, expected) in cases {
        fs::write(folder.join(name), bytes).unwrap();
        let output = planned(folder, "", &with(SFT, &format!("{name:?}")));
        match expected {
            Ok(rows) => assert_eq!(rows_of(&output), rows, "{name}"),
            Err(part) => {
                let message = stderr(&output);
                assert_eq!(output.status.code(), Some(2), "{name}: {message}");
                assert!(message.contains("1 problem in r.ron"), "{message}");
                assert!(message.contains(part), "expected {part:?} in {message}");
            }
        }
    }
}

#[test]
fn what_was_recognised_is_said_and_can_be_overridden() {
    let temp = workplace();
    let folder = temp.path();
    fs::write(folder.join("a.csv"), "instruction,output\ni,o\nj,p\n").unwrap();
    let said = |data: &str| {
        let output = planned(folder, "", &with(SFT, data));
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    assert_eq!(
        said("\"a.csv\""),
        "a.csv: 2 rows with the columns `instruction`, `input` and `output` are Alpaca's, read as `prompt` and `completion`: \
         instruction and input below headings, or with `chat: true` as the user's message (`format: (shape: ..)` or templates override this)\n"
    );
    let named = "(source: \"a.csv\", format: (prompt: \"{{ instruction }}\", completion: \" {{ output }}\"))";
    assert_eq!(said(named), "");
    // Plain texts, folders, parts and mixtures; a set by its name.
    fs::write(folder.join("t.txt"), "one\n\ntwo\nthree\n").unwrap();
    let text = with("Pretrain(name: \"s\", DATA, batch_size: 1)", "\"t.txt\"");
    assert_eq!(rows_of(&planned(folder, "", &text)), 3);
    fs::create_dir(folder.join("d")).unwrap();
    let pairs = |n: usize| -> String {
        (0..n)
            .map(|i| format!("{{\"prompt\":\"{i}\",\"completion\":\" c\"}}\n"))
            .collect()
    };
    fs::write(folder.join("d/1.jsonl"), pairs(30)).unwrap();
    fs::write(folder.join("d/2.jsonl"), pairs(20)).unwrap();
    let header = "data: {\"mine\": (source: \"d\", valid_fraction: 0.2)},";
    let stage = "Sft(name: \"s\", data: \"mine\", batch_size: 1), Sft(name: \"v\", data: (source: HeldOut(\"mine\")), batch_size: 1)";
    let output = planned(folder, header, stage);
    let train = rows_of(&output);
    assert!((30..50).contains(&train), "{train}");
    let held_out = planned(
        folder,
        header,
        &stage.replacen("\"mine\"", "(source: HeldOut(\"mine\"))", 1),
    );
    assert_eq!(rows_of(&held_out) + train, 50);
    let mix = with(
        SFT,
        "(source: Mix([(0.75, \"d/*.jsonl\"), (0.25, \"a.csv\")]))",
    );
    let output = planned(folder, "", &mix);
    assert_eq!(rows_of(&output), 8);
    assert!(
        stderr(&output).contains("the mixture has 6 of 50 rows of d/*.jsonl, 2 of 2 rows of a.csv")
    );
}

#[test]
fn wrong_keys_of_data_are_named_at_once() {
    let temp = workplace();
    let folder = temp.path();
    fs::write(folder.join("rows.csv"), "prompt,completion\na, b\n").unwrap();
    let stages = "Sft(name: \"a\", data: \"row.csv\", batch_size: 1),
        Sft(name: \"b\", data: (source: \"rows.csv\", format: (shape: \"alpacca\")), batch_size: 1),
        Sft(name: \"c\", data: (source: HeldOut(\"mine\")), eval_data: (source: \"mine\", valid_fraction: 1.5), batch_size: 1),
        Sft(name: \"d\", data: (source: Mix([(0.0, \"rows.csv\"), (1.0, (source: \"rows.csv\", format: (chat: true)))])), batch_size: 1)";
    let header = "data: {\"mine\": \"rows.csv\"},";
    let output = planned(folder, header, stages);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for part in [
        "stages.b.data.format.shape: there is no layout `alpacca`; known are `sharegpt`, `openai`, `ultrafeedback`, `alpaca`, `hh_rlhf`, `kto`, `columns`\n    help: did you mean `alpaca`?",
        "stages.c.data.valid_fraction: no rows are held out: the data set has no `valid_fraction`",
        "stages.c.eval_data.valid_fraction: must be at least 0 and below 1, found 1.5",
        "stages.d.data.source.0.0: must be a weight above 0, found 0.0",
        "stages.d.data.source.1.1.format: a set of a mixture has templates, `shape` and `sample_by` of its own; other keys are given once",
        "5 problems in r.ron",
    ] {
        assert!(message.contains(part), "expected {part:?} in {message}");
    }
    let message = stderr(&planned(folder, "", &with(SFT, "\"row.csv\"")));
    let part = "stages.s.data.source: cannot read row.csv: No such file or directory (os error 2)\n    help: did you mean rows.csv?";
    assert!(message.contains(part), "{message}");
}
