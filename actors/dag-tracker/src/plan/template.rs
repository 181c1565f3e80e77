//! `${…}` in arguments: parsed and checked once, filled in for each instance.
//!
//! A text that is exactly one reference becomes the value itself. Inside a longer text parameters and items are
//! written out; a task's output never is, because it may be anything and of any size. Parameters are known when a
//! flow is compiled and are filled in there; what remains is the item of a fan-out and the outputs of tasks.

use std::borrow::Cow;
use std::collections::BTreeMap;

use eclosion_schemas::suggest::hint;
use eclosion_schemas::{Error, Payload};
use serde_json::Value;

/// Lists and maps inside each other in one argument; the journal's decoder has a limit too.
const NESTING_MAX: usize = 16;

/// Where an argument stands, as a refusal names it; written out only then.
pub(crate) type Place<'a> = std::fmt::Arguments<'a>;

/// What stands between `${` and `}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    Parameter(String),
    Item,
    Task(String),
}

/// An argument with its parameters filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Template {
    /// The same for every instance, encoded once.
    Fixed(Payload),
    /// The item itself.
    Item,
    /// A value with the item somewhere inside.
    Around(Value),
    /// The output of a task, by name.
    Output(String),
}

/// What a template may refer to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub parameters: &'a BTreeMap<String, Value>,
    /// The task that the argument belongs to has `each`.
    pub item: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Segment<'a> {
    Text(Cow<'a, str>),
    Reference(Reference),
}

/// Compiles one argument. `place` names it in refusals: `argument \`x\` of task \`train\``.
pub(crate) fn compile(value: &Value, scope: Scope<'_>, place: Place<'_>) -> Result<Template, Error> {
    if let Value::String(text) = value
        && let [Segment::Reference(reference)] = segments(text, place)?.as_slice()
    {
        match reference {
            Reference::Task(name) => return Ok(Template::Output(name.clone())),
            Reference::Item => return item_allowed(scope, place).map(|()| Template::Item),
            Reference::Parameter(_) => {}
        }
    }
    let filled = fill_parameters(value, scope, place, 0)?;
    Ok(if mentions_item(&filled) {
        Template::Around(filled)
    } else {
        Template::Fixed(Payload::of(&unescaped(&filled)))
    })
}

/// The reference that a text consists of, if it is exactly one.
pub(crate) fn sole_reference(text: &str, place: Place<'_>) -> Result<Option<Reference>, Error> {
    let mut segments = segments(text, place)?;
    match (segments.pop(), segments.is_empty()) {
        (Some(Segment::Reference(reference)), true) => Ok(Some(reference)),
        _ => Ok(None),
    }
}

/// A value without item or task references, its parameters filled in: the items of a literal fan-out.
pub(crate) fn resolve(
    value: &Value,
    parameters: &BTreeMap<String, Value>,
    place: Place<'_>,
) -> Result<Value, Error> {
    fill_parameters(value, Scope { parameters, item: false }, place, 0).map(|filled| unescaped(&filled))
}

pub(crate) fn parameter<'a>(
    name: &str,
    parameters: &'a BTreeMap<String, Value>,
    place: Place<'_>,
) -> Result<&'a Value, Error> {
    parameters.get(name).ok_or_else(|| {
        refuse(place, &format!("there is no parameter `{name}`"))
            .help(hint(name, parameters.keys().map(String::as_str)))
    })
}

/// Puts an item into [`Template::Around`].
pub(crate) fn fill_item(value: &Value, item: &Value, place: Place<'_>) -> Result<Value, Error> {
    Ok(match value {
        Value::String(text) => {
            let segments = segments(text, place)?;
            match segments.as_slice() {
                [Segment::Reference(Reference::Item)] => item.clone(),
                _ => Value::String(written(&segments, |_| Ok(item.clone()), place)?),
            }
        }
        Value::Array(values) => {
            Value::Array(values.iter().map(|value| fill_item(value, item, place)).collect::<Result<_, _>>()?)
        }
        Value::Object(entries) => Value::Object(
            entries
                .iter()
                .map(|(key, value)| Ok((key.clone(), fill_item(value, item, place)?)))
                .collect::<Result<_, Error>>()?,
        ),
        plain => plain.clone(),
    })
}

fn refuse(place: Place<'_>, why: &str) -> Error {
    Error::invalid("flow.reference", format!("{place}: {why}"))
}

fn item_allowed(scope: Scope<'_>, place: Place<'_>) -> Result<(), Error> {
    if scope.item {
        return Ok(());
    }
    Err(refuse(place, "`${item}` stands in a task that has no `each`")
        .help("give the task `each = […]`, or write `$${item}` for the text itself"))
}

/// Fills parameters in. The outcome may still hold `${item}` and `$${`, and nothing else that is special: a `${` that
/// came out of a parameter's value is escaped.
fn fill_parameters(value: &Value, scope: Scope<'_>, place: Place<'_>, depth: usize) -> Result<Value, Error> {
    if depth > NESTING_MAX {
        return Err(Error::invalid("flow.too_large", format!("{place} is nested deeper than {NESTING_MAX}"))
            .help("pass a flatter value, or a file"));
    }
    Ok(match value {
        Value::String(text) => fill_text(text, scope, place)?,
        Value::Array(values) => Value::Array(
            values
                .iter()
                .map(|value| fill_parameters(value, scope, place, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(entries) => Value::Object(
            entries
                .iter()
                .map(|(key, value)| Ok((key.clone(), fill_parameters(value, scope, place, depth + 1)?)))
                .collect::<Result<_, Error>>()?,
        ),
        plain => plain.clone(),
    })
}

fn fill_text(text: &str, scope: Scope<'_>, place: Place<'_>) -> Result<Value, Error> {
    let segments = segments(text, place)?;
    if let [Segment::Reference(Reference::Parameter(name))] = segments.as_slice() {
        return parameter(name, scope.parameters, place).map(escaped);
    }
    let mut filled = String::with_capacity(text.len());
    for segment in &segments {
        match segment {
            Segment::Text(text) => filled.push_str(&escape(text)),
            Segment::Reference(Reference::Parameter(name)) => {
                let value = parameter(name, scope.parameters, place)?;
                filled.push_str(&escape(&as_text(value, &format!("${{param.{name}}}"), place)?));
            }
            Segment::Reference(Reference::Item) => {
                item_allowed(scope, place)?;
                filled.push_str("${item}");
            }
            Segment::Reference(Reference::Task(name)) => {
                return Err(refuse(
                    place,
                    &format!("the output of `{name}` cannot stand inside another value"),
                )
                .help(format!("pass it as an argument of its own: with = {{ {name} = \"${{{name}}}\" }}")));
            }
        }
    }
    Ok(Value::String(filled))
}

fn escape(text: &str) -> Cow<'_, str> {
    if text.contains("${") { text.replace("${", "$${").into() } else { text.into() }
}

/// The same value, its texts written so that parsing gives them back.
fn escaped(value: &Value) -> Value {
    map_texts(value, &|text| escape(text).into_owned())
}

/// The other way round, for a value in which no reference is left.
fn unescaped(value: &Value) -> Value {
    map_texts(value, &|text| text.replace("$${", "${"))
}

fn map_texts(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(values) => Value::Array(values.iter().map(|value| map_texts(value, change)).collect()),
        Value::Object(entries) => Value::Object(
            entries.iter().map(|(key, value)| (key.clone(), map_texts(value, change))).collect(),
        ),
        plain => plain.clone(),
    }
}

fn mentions_item(value: &Value) -> bool {
    match value {
        // Parameters are filled in and tasks refused, so whatever reference is left is the item.
        Value::String(text) => segments(text, format_args!(""))
            .is_ok_and(|segments| segments.iter().any(|segment| matches!(segment, Segment::Reference(_)))),
        Value::Array(values) => values.iter().any(mentions_item),
        Value::Object(entries) => entries.values().any(mentions_item),
        _ => false,
    }
}

fn written(
    segments: &[Segment<'_>],
    value_of: impl Fn(&Reference) -> Result<Value, Error>,
    place: Place<'_>,
) -> Result<String, Error> {
    let mut text = String::new();
    for segment in segments {
        match segment {
            Segment::Text(part) => text.push_str(part),
            Segment::Reference(reference) => {
                text.push_str(&as_text(&value_of(reference)?, "${item}", place)?)
            }
        }
    }
    Ok(text)
}

fn as_text(value: &Value, reference: &str, place: Place<'_>) -> Result<String, Error> {
    let kind = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => return Ok(value.to_string()),
        Value::Null => "nothing",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    Err(refuse(place, &format!("`{reference}` is {kind} and cannot stand inside a text"))
        .help(format!("let the text be exactly `{reference}` to pass the value itself")))
}

fn segments<'a>(text: &'a str, place: Place<'_>) -> Result<Vec<Segment<'a>>, Error> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            found.push(Segment::Text(rest[..at - 1].into()));
            found.push(Segment::Text("${".into()));
            rest = &rest[at + 2..];
            continue;
        }
        let Some(end) = rest[at..].find('}') else {
            return Err(refuse(place, &format!("`{}` is not closed", &rest[at..]))
                .help("close it with `}`, or write `$${` for the text itself"));
        };
        if at > 0 {
            found.push(Segment::Text(rest[..at].into()));
        }
        found.push(Segment::Reference(reference(&rest[at + 2..at + end], place)?));
        rest = &rest[at + end + 1..];
    }
    if !rest.is_empty() {
        found.push(Segment::Text(rest.into()));
    }
    Ok(found)
}

fn reference(inside: &str, place: Place<'_>) -> Result<Reference, Error> {
    match inside.trim() {
        "" => Err(refuse(place, "`${}` names nothing")
            .help("write `${param.NAME}`, `${item}` or `${TASK}`, or `$${` for the text itself")),
        "item" => Ok(Reference::Item),
        name => Ok(match name.strip_prefix("param.") {
            Some(parameter) => Reference::Parameter(parameter.into()),
            None => Reference::Task(name.into()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parameters() -> BTreeMap<String, Value> {
        let pairs =
            [("n", json!(7)), ("list", json!([1, "${x}"])), ("name", json!("a${b")), ("none", json!(null))];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn compiled(value: &Value) -> Result<Template, Error> {
        compile(
            value,
            Scope { parameters: &parameters(), item: true },
            format_args!("argument `x` of task `t`"),
        )
    }

    #[test]
    fn values_texts_and_escapes_come_out_as_the_grammar_says() {
        for (given, wanted) in [
            (json!("${param.n}"), json!(7)),
            (json!("n=${param.n}!"), json!("n=7!")),
            (json!("${param.list}"), json!([1, "${x}"])),
            (json!({"deep": ["${param.n}", "$${item}"]}), json!({"deep": [7, "${item}"]})),
            (json!("${param.name}"), json!("a${b")),
            (json!("-${param.name}"), json!("-a${b")),
            (json!("costs $5"), json!("costs $5")),
            (json!(null), json!(null)),
        ] {
            assert_eq!(compiled(&given), Ok(Template::Fixed(Payload::of(&wanted))), "{given}");
        }
        assert_eq!(compiled(&json!("${load}")), Ok(Template::Output("load".into())));
        assert_eq!(compiled(&json!("${item}")), Ok(Template::Item));
    }

    #[test]
    fn an_item_is_put_where_it_stands() {
        let place = format_args!("here");
        let Ok(Template::Around(value)) =
            compiled(&json!({"model": "${item}", "t": "$${a} ${item} ${param.name}"}))
        else {
            panic!("it mentions the item");
        };
        let filled = fill_item(&value, &json!("forest"), place);
        assert_eq!(filled, Ok(json!({"model": "forest", "t": "${a} forest a${b"})));
        assert!(fill_item(&value, &json!([1]), place).is_err());
    }

    #[test]
    fn what_refers_to_nothing_is_refused_with_a_way_out() {
        for (given, message) in [
            (json!("${param.m}"), "argument `x` of task `t`: there is no parameter `m`"),
            (
                json!("a ${load}"),
                "argument `x` of task `t`: the output of `load` cannot stand inside another value",
            ),
            (
                json!(["${load}"]),
                "argument `x` of task `t`: the output of `load` cannot stand inside another value",
            ),
            (json!("${param.n"), "argument `x` of task `t`: `${param.n` is not closed"),
            (json!("${}"), "argument `x` of task `t`: `${}` names nothing"),
            (
                json!("a${param.list}"),
                "argument `x` of task `t`: `${param.list}` is a list and cannot stand inside a text",
            ),
            (
                json!("a${param.none}"),
                "argument `x` of task `t`: `${param.none}` is nothing and cannot stand inside a text",
            ),
        ] {
            let error = compiled(&given).expect_err("refused");
            assert_eq!((error.reason.as_str(), error.message.as_str()), ("flow.reference", message));
            assert!(error.help.is_some(), "{given}");
        }
        let outside = compile(
            &json!("${item}"),
            Scope { parameters: &parameters(), item: false },
            format_args!("here"),
        );
        assert_eq!(
            outside.expect_err("no each").message,
            "here: `${item}` stands in a task that has no `each`"
        );
    }
}
