//! Arithmetic over metrics, as transforms have it: `active_power_total / apparent_power_total`.
//!
//! The library parses and evaluates; this brings what people write into what it takes for sure:
//! 1. only ASCII, at most [`LENGTH`] bytes and [`DEPTH`] parentheses deep, so that no text costs much;
//! 2. a name that is no function's is put in braces, because the library would find operators within names;
//! 3. a function of two or more becomes an operator between its arguments, because the library's own commas do not
//!    nest; and there is no power operator, because people do not agree on what `-x^2` is: `pow(x, 2)` is clear.
//!
//! | | |
//! |---|---|
//! | `or`: `\|\|`, `and`: `&&` | 1 or 0; anything but 0 is true |
//! | `<` `<=` `>` `>=` `==` `!=` | 1 or 0 |
//! | `+` `-`, `*` `/` `%` | `%` is the remainder, with the sign of the left side |
//! | `min(a, b, ...)` `max(a, b, ...)` `pow(a, b)` | |
//! | `abs(a)` `sqrt(a)` `exp(a)` `ln(a)` `sin(a)` `cos(a)` `tan(a)` `atan(a)` `floor(a)` `ceil(a)` `round(a)` | angles in radians |

use exmex::{BinOp, Express as _, FlatEx, MakeOperators, Operator};
use serde::{Deserialize, Serialize};

/// The longest expression, in bytes.
pub const LENGTH: usize = 512;
/// How deep parentheses may be nested.
pub const DEPTH: usize = 32;

/// Functions of one argument.
const UNARY: [&str; 11] = [
    "abs", "sqrt", "exp", "ln", "sin", "cos", "tan", "atan", "floor", "ceil", "round",
];
/// Functions of two or more, with the operators that they become.
const INFIX: [(&str, &str); 3] = [("min", "/_"), ("max", "^_"), ("pow", "**")];

fn truth(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

fn binary(name: &'static str, prio: i64, apply: fn(f64, f64) -> f64) -> Operator<'static, f64> {
    Operator::make_bin(
        name,
        BinOp {
            apply,
            prio,
            is_commutative: false,
        },
    )
}

/// What there is to calculate with.
#[derive(Clone, Debug)]
struct Arithmetic;

impl MakeOperators<f64> for Arithmetic {
    fn make<'a>() -> Vec<Operator<'a, f64>> {
        vec![
            binary("||", 0, |a, b| truth(a != 0.0 || b != 0.0)),
            binary("&&", 1, |a, b| truth(a != 0.0 && b != 0.0)),
            binary("<", 2, |a, b| truth(a < b)),
            binary("<=", 2, |a, b| truth(a <= b)),
            binary(">", 2, |a, b| truth(a > b)),
            binary(">=", 2, |a, b| truth(a >= b)),
            binary("==", 2, |a, b| truth(a == b)),
            binary("!=", 2, |a, b| truth(a != b)),
            binary("+", 3, |a, b| a + b),
            Operator::make_bin_unary(
                "-",
                BinOp {
                    apply: |a, b| a - b,
                    prio: 3,
                    is_commutative: false,
                },
                |a| -a,
            ),
            binary("*", 4, |a, b| a * b),
            binary("/", 4, |a, b| a / b),
            binary("%", 4, |a, b| a % b),
            binary("/_", 5, f64::min),
            binary("^_", 5, f64::max),
            binary("**", 5, f64::powf),
            Operator::make_unary("abs", f64::abs),
            Operator::make_unary("sqrt", f64::sqrt),
            Operator::make_unary("exp", f64::exp),
            Operator::make_unary("ln", f64::ln),
            Operator::make_unary("sin", f64::sin),
            Operator::make_unary("cos", f64::cos),
            Operator::make_unary("tan", f64::tan),
            Operator::make_unary("atan", f64::atan),
            Operator::make_unary("floor", f64::floor),
            Operator::make_unary("ceil", f64::ceil),
            Operator::make_unary("round", f64::round),
        ]
    }
}

/// Why a text is no expression.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct NotAnExpression(String);

/// An expression that was understood. In a file it is its text, and a file with one that cannot be understood is not read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expression {
    text: String,
    flat: FlatEx<f64, Arithmetic>,
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, NotAnExpression> {
        let prepared = prepare(text).map_err(NotAnExpression)?;
        let flat = FlatEx::parse(&prepared).map_err(|_| {
            NotAnExpression(format!(
                "\"{text}\" is not an expression: write names of metrics, numbers, + - * / %, comparisons, && and ||, and \
                 functions such as abs(a) or max(a, b)"
            ))
        })?;
        Ok(Self {
            text: text.to_owned(),
            flat,
        })
    }

    /// The metrics it needs, each once, in the order in which [`Expression::eval`] takes their values.
    #[must_use]
    pub fn names(&self) -> &[String] {
        self.flat.var_names()
    }

    /// Its value; `None` where that is no finite number, as for a division by zero, or the number of values is not that
    /// of the names.
    #[must_use]
    pub fn eval(&self, values: &[f64]) -> Option<f64> {
        self.flat.eval(values).ok().filter(|value| value.is_finite())
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl TryFrom<String> for Expression {
    type Error = NotAnExpression;

    fn try_from(text: String) -> Result<Self, NotAnExpression> {
        Self::parse(&text)
    }
}

impl From<Expression> for String {
    fn from(expression: Expression) -> Self {
        expression.text
    }
}

/// What a parenthesis that is open belongs to.
enum Open {
    /// Nothing, or a function of one argument.
    Plain,
    /// A function of two or more: its operator, and the arguments so far.
    Infix(&'static str, &'static str, usize),
}

/// Brings an expression into the form that the library takes.
fn prepare(text: &str) -> Result<String, String> {
    if text.len() > LENGTH {
        return Err(format!(
            "the expression is longer than {LENGTH} bytes: derive it in steps"
        ));
    }
    let mut out = String::with_capacity(text.len() * 2);
    let mut open = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(rest.len());
                let (name, after) = rest.split_at(length);
                if !after.trim_start().starts_with('(') {
                    out.push('{');
                    out.push_str(name);
                    out.push('}');
                    length
                } else if UNARY.contains(&name) {
                    out.push_str(name);
                    length
                } else if let Some((name, operator)) = INFIX.iter().find(|(infix, _)| *infix == name) {
                    open.push(Open::Infix(name, operator, 1));
                    out.push_str("((");
                    length + after.find('(').unwrap_or(0) + 1
                } else {
                    return Err(format!(
                        "\"{text}\": there is no function \"{name}\": there are {}, min, max and pow",
                        UNARY.join(", ")
                    ));
                }
            }
            '0'..='9' | '.' => number(rest, text, &mut out)?,
            '(' => {
                open.push(Open::Plain);
                out.push('(');
                1
            }
            ')' => {
                match open.pop() {
                    Some(Open::Plain) => out.push(')'),
                    Some(Open::Infix(_, _, arguments)) if arguments > 1 => out.push_str("))"),
                    Some(Open::Infix(name, ..)) => {
                        return Err(format!(
                            "\"{text}\": {name} needs two arguments, as in {name}(a, b)"
                        ));
                    }
                    None => return Err(format!("\"{text}\" has a ) without a (")),
                }
                1
            }
            ',' => {
                match open.last_mut() {
                    Some(Open::Infix("pow", _, 2)) => {
                        return Err(format!("\"{text}\": pow has two arguments, as in pow(a, 2)"));
                    }
                    Some(Open::Infix(_, operator, arguments)) => {
                        *arguments += 1;
                        out.push_str(&format!(") {operator} ("));
                    }
                    _ => {
                        return Err(format!(
                            "\"{text}\": a comma stands only between arguments of min, max and pow"
                        ));
                    }
                }
                1
            }
            ' ' | '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!' | '&' | '|' => {
                if rest.starts_with("**") {
                    return Err(format!("\"{text}\": write pow(a, 2) for a power"));
                }
                out.push(first);
                1
            }
            _ => {
                return Err(format!(
                    "\"{text}\" has a {first:?}, which no expression has; a power is written pow(a, 2)"
                ));
            }
        };
        if open.len() > DEPTH {
            return Err(format!(
                "\"{text}\" has more than {DEPTH} parentheses within each other"
            ));
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    if open.is_empty() {
        Ok(out)
    } else {
        Err(format!("\"{text}\" has a ( without a )"))
    }
}

/// Takes a number; written out without exponent, which the library would take for a name.
fn number(rest: &str, text: &str, out: &mut String) -> Result<usize, String> {
    let digits = |from: usize| {
        rest[from..]
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .map_or(rest.len(), |at| from + at)
    };
    let mut end = digits(0);
    if rest[end..].starts_with(['e', 'E']) {
        let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
        if rest[end + 1 + sign..].starts_with(|c: char| c.is_ascii_digit()) {
            end = digits(end + 1 + sign);
        }
    }
    let shown = &rest[..end];
    let number: f64 = shown
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| format!("\"{text}\": \"{shown}\" is not a number"))?;
    if rest[end..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!(
            "\"{text}\": a name begins with a letter, and an operator stands after {shown}"
        ));
    }
    out.push_str(&number.to_string());
    Ok(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn eval(text: &str, values: &[(&str, f64)]) -> Option<f64> {
        let expression = Expression::parse(text).unwrap();
        let values: Vec<f64> = expression
            .names()
            .iter()
            .map(|name| values.iter().find(|(n, _)| n == name).unwrap().1)
            .collect();
        expression.eval(&values)
    }

    #[test]
    fn is_what_it_looks_like() {
        let values = [
            ("a", 7.0),
            ("b", 2.0),
            ("max_power", 5.0),
            ("e", 3.0),
            ("min", 1.0),
            ("sinus", 4.0),
        ];
        for (text, value) in [
            ("a - b - 1", 4.0),
            ("a / b / 2", 1.75),
            ("a - (b - 1)", 6.0),
            ("a - -b", 9.0),
            ("-a * b", -14.0),
            ("2*-a", -14.0),
            ("a % b", 1.0),
            ("-a % b", -1.0),
            ("a + b * 2 < 11 && b == 2", 0.0),
            ("a + b * 2 <= 11 && b == 2 || 0", 1.0),
            ("a > b != 0", 1.0),
            ("max_power + e + min + sinus", 13.0),
            ("min(a, b, -1)", -1.0),
            ("max ( min(a, b), min(a - 1, 6) ) * 2", 12.0),
            ("pow(a - 5, pow(b, 2))", 16.0),
            ("-pow(b, 2)", -4.0),
            ("sqrt(abs(-16)) + round(1.6)", 6.0),
            ("1.5e3 + 2E-1 + .5 + 1e20 - 1e20", 0.0),
            ("1.5e3 + 2E-1", 1500.2),
            ("atan(a) - atan(a)", 0.0),
        ] {
            assert_eq!(eval(text, &values), Some(value), "{text}");
        }
        assert_eq!(eval("a / (b - 2)", &values), None, "no finite number");
        assert_eq!(eval("sqrt(0 - a)", &values), None);
        assert_eq!(Expression::parse("b + a * b").unwrap().names(), ["a", "b"]);
        assert_eq!(Expression::parse("a").unwrap().eval(&[]), None);
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, says) in [
            ("", "is not an expression"),
            ("a +", "is not an expression"),
            ("a b", "is not an expression"),
            ("a = b", "is not an expression"),
            ("()", "is not an expression"),
            ("(a", "a ( without a )"),
            ("a)", "a ) without a ("),
            ("a ^ 2", "pow(a, 2)"),
            ("a ** 2", "pow(a, 2)"),
            ("a; b", "has a ';'"),
            ("größe", "has a 'ö'"),
            ("{a}", "has a '{'"),
            ("sinh(a)", "no function \"sinh\""),
            ("a(b)", "no function \"a\""),
            ("max(a)", "needs two arguments"),
            ("pow(a, b, c)", "pow has two"),
            ("(a, b)", "a comma stands only"),
            ("1.2.3", "is not a number"),
            ("1e999", "is not a number"),
            ("2a", "a name begins with a letter"),
            (&"(".repeat(DEPTH + 1), "parentheses within"),
            (&"1".repeat(LENGTH + 1), "longer than"),
        ] {
            let error = Expression::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    /// An expression, and its value by itself.
    fn any_expression() -> impl Strategy<Value = (String, f64)> {
        let leaf = prop_oneof![
            (0u32..100).prop_map(|n| (n.to_string(), f64::from(n))),
            Just(("a".to_owned(), 3.0)),
            Just(("max_b".to_owned(), -0.5)),
        ];
        leaf.prop_recursive(5, 40, 2, |inner| {
            (0usize..14, inner.clone(), inner).prop_map(|(which, (x, a), (y, b))| match which {
                0 => (format!("({x}) + ({y})"), a + b),
                1 => (format!("({x}) - ({y})"), a - b),
                2 => (format!("({x})*({y})"), a * b),
                3 => (format!("({x}) / ({y})"), a / b),
                4 => (format!("-({x})"), -a),
                5 => (format!("min({x}, {y})"), a.min(b)),
                6 => (format!("max({y}, {x}, {x})"), b.max(a)),
                7 => (format!("({x}) < ({y})"), truth(a < b)),
                8 => (format!("({x}) >= ({y})"), truth(a >= b)),
                9 => (format!("({x}) && ({y})"), truth(a != 0.0 && b != 0.0)),
                10 => (format!("({x}) || ({y})"), truth(a != 0.0 || b != 0.0)),
                11 => (format!("abs({x})"), a.abs()),
                12 => (format!("floor({x})"), a.floor()),
                _ => (format!("({x}) % ({y})"), a % b),
            })
        })
    }

    proptest! {
        #[test]
        fn evaluates_as_arithmetic_does((text, value) in any_expression()) {
            prop_assume!(text.len() <= LENGTH);
            let got = eval(&text, &[("a", 3.0), ("max_b", -0.5)]);
            prop_assert_eq!(got, Some(value).filter(|v| v.is_finite()), "{}", text);
        }

        #[test]
        fn left_comes_first(terms in proptest::collection::vec((0usize..5, 1u32..9), 1..8)) {
            // Without parentheses: what Rust itself makes of it, by precedence.
            let mut text = "6".to_owned();
            let (mut sum, mut product) = (0.0, 6.0f64);
            for (which, n) in &terms {
                let (sign, n) = (["+", "-", "*", "/", "%"][*which], f64::from(*n));
                text.push_str(&format!(" {sign} {n}"));
                match sign {
                    "*" => product *= n,
                    "/" => product /= n,
                    "%" => product %= n,
                    _ => {
                        sum += product;
                        product = if sign == "+" { n } else { -n };
                    }
                }
            }
            let got = eval(&text, &[]).unwrap();
            prop_assert!((got - (sum + product)).abs() < 1e-9, "{}: {} and {}", text, got, sum + product);
        }

        #[test]
        fn no_text_is_too_much(text in "[ -~ä]{0,80}", numbers in "[-+*/%<>=!&|(),.0-9a-e ]{0,120}") {
            for text in [text, numbers] {
                if let Ok(expression) = Expression::parse(&text) {
                    let values = vec![1.0; expression.names().len()];
                    let _ = expression.eval(&values);
                }
            }
        }
    }
}
