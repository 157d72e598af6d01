//! The offline check gives the verdicts of the table that the API server is held to.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail as loudly as the tests themselves"
)]

use corrente_config::manifest::check::Checker;
use corrente_crds::cases;

#[test]
fn the_offline_check_gives_the_verdicts_of_the_table() {
    let checker = Checker::new().unwrap();
    let mut wrong = Vec::new();
    for case in cases::all().unwrap() {
        let problems = checker.check(&case.document).unwrap();
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        match (&case.refused, problems.is_empty()) {
            (None, true) => {}
            (None, false) => wrong.push(format!("{}: refused: {}", case.name, text.join("; "))),
            (Some(_), true) => wrong.push(format!("{}: accepted", case.name)),
            (Some(refusal), false) => {
                let as_expected = problems
                    .iter()
                    .any(|p| p.path.contains(&refusal.at) && p.message.contains(&refusal.says));
                if !as_expected {
                    wrong.push(format!(
                        "{}: refused for another reason: {}",
                        case.name,
                        text.join("; ")
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
