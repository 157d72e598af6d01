//! The command line as a user has it: the binary, its output and its exit code.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly, its helpers too")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rusqlite::Connection;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn corrente(arguments: &[&str], folder: &Path) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_corrente"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output, text)
}

fn quickstart() -> String {
    repository().join("manifests/quickstart").display().to_string()
}

#[test]
fn the_manifests_we_ship_are_right() {
    for folder in [
        "manifests/quickstart",
        "manifests/examples",
        "manifests/profiles",
        "manifests",
    ] {
        let (output, text) = corrente(&["validate", folder], &repository());
        assert!(output.status.success(), "{folder}: {text}");
        assert!(text.contains("all right"), "{text}");
    }
}

#[test]
fn the_whole_chain_runs_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (output, text) = corrente(
        &["local", "--simulate", &quickstart(), "--duration", "7s"],
        folder.path(),
    );
    assert!(output.status.success(), "{text}");
    let summary = text.lines().find(|line| line.starts_with("ended: ")).unwrap();
    assert!(summary.contains("lost: 0"), "{summary}");
    let number = |noun: &str| -> i64 {
        let before = summary.split(&format!(" {noun}")).next().unwrap();
        before.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let database = Connection::open(folder.path().join(".corrente/readings.sqlite")).unwrap();
    let count = |query: &str| -> i64 { database.query_row(query, [], |row| row.get(0)).unwrap() };
    let rows = count("SELECT count(*) FROM readings");
    assert!(
        rows >= 6 && rows == number("row") && rows == number("record"),
        "{rows} rows; {summary}"
    );
    assert_eq!(
        count("SELECT count(DISTINCT meter) FROM readings WHERE quality = 'good'"),
        6
    );
    assert_eq!(
        count("SELECT count(*) FROM (SELECT DISTINCT meter, slot FROM readings)"),
        rows
    );
    assert_eq!(
        count("SELECT count(*) FROM readings WHERE voltage_l1_n NOT BETWEEN 200 AND 260"),
        0
    );

    // Again in the same folder: the history grows, and nothing of before is stored twice.
    let (output, text) = corrente(
        &["local", "--simulate", &quickstart(), "--duration", "5s"],
        folder.path(),
    );
    assert!(output.status.success(), "{text}");
    let more = count("SELECT count(*) FROM readings");
    assert!(more > rows, "{more}");
    assert_eq!(
        count("SELECT count(*) FROM (SELECT DISTINCT stream, seq FROM readings)"),
        more
    );
}

#[test]
fn the_plan_says_how_each_model_is_read() {
    let (output, text) = corrente(&["plan", &quickstart()], &repository());
    assert!(output.status.success(), "{text}");
    assert!(text.contains("eastron-sdm630: 39 values in"), "{text}");
    assert!(
        text.contains("endpoint gateway-east (rtu-over-tcp 192.168.10.21:4001): 3 meters"),
        "{text}"
    );
}

#[test]
fn each_mistake_is_one_line_that_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let right = fs::read_to_string(repository().join("manifests/quickstart/site.yaml")).unwrap();
    for (wrong, with, line, place, says) in [
        ("interval: 2s", "interval: 7s", "interval", "spec", "divide"),
        (
            "  timeout: 500ms",
            "  timeuot: 500ms",
            "timeuot",
            "spec",
            "did you mean",
        ),
        ("unitId: 3,", "unitId: 300,", "unitId: 300", "unitId", "255"),
        (
            "profile: eastron-sdm120",
            "profile: eastron-sdm12",
            "sdm12,",
            "profile",
            "eastron-sdm12",
        ),
        (
            "    - voltage_l2_n",
            "    - voltage_l9_n",
            "voltage_l9_n",
            "metrics",
            "voltage_l9_n",
        ),
        (
            "name: feeder-02",
            "name: feeder-01",
            "name: feeder-01, unitId: 2",
            "name",
            "feeder-01",
        ),
        (
            "address: 192.168.10.22 ",
            "address: 192.168.10.30:502 ",
            "192.168.10.30",
            "address",
            "192.168.10.30",
        ),
    ] {
        assert!(right.contains(wrong), "{wrong}");
        let text = right.replacen(wrong, with, 1);
        fs::write(folder.path().join("site.yaml"), &text).unwrap();
        let (output, printed) = corrente(&["validate", "site.yaml"], folder.path());
        assert_eq!(output.status.code(), Some(1), "{with}: {printed}");
        let problems: Vec<_> = printed
            .lines()
            .filter(|line| line.starts_with("site.yaml:"))
            .collect();
        assert_eq!(problems.len(), 1, "{with}: {printed}");
        let number: usize = problems[0].split(':').nth(1).unwrap().parse().unwrap();
        let named = text.lines().nth(number - 1).unwrap();
        assert!(
            named.contains(line) || text.lines().nth(number).unwrap().contains(line),
            "{number}: {printed}"
        );
        assert!(
            problems[0].contains(place) && problems[0].contains(says),
            "{printed}"
        );
    }
}

#[test]
fn what_cannot_be_done_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("not.yaml"), "a: [1,\n").unwrap();
    fs::write(folder.path().join("empty.yaml"), "# nothing\n").unwrap();
    for (arguments, code, says) in [
        (&["validate", "missing"][..], 1, "missing"),
        (&["validate", "not.yaml"], 1, "not YAML"),
        (&["local", "empty.yaml"], 2, "there is no MeterPoller"),
        (
            &["read", &quickstart(), "--meter", "nobody"],
            2,
            "there is no meter \"nobody\"",
        ),
    ] {
        let (output, text) = corrente(arguments, folder.path());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
        assert!(!text.contains("backtrace"), "{text}");
    }
}
