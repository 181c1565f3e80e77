//! `config`: what is set, and who said so.

use eclosion::config::{self, Files, Origin, Row, Surroundings};
use eclosion_schemas::Error;
use serde_json::{Value, json};

use crate::arguments::{Config, Flags};
use crate::exit;
use crate::globals::{self, Globals};
use crate::render::{pairs, table};
use crate::terminal::{document, print};

pub(super) fn perform(flags: &Flags, config: &Config) -> Result<u8, Error> {
    match config {
        Config::Show { origin } => show(&Globals::read(flags)?, *origin),
        Config::Path => path(flags),
    }
}

fn show(globals: &Globals, with_origin: bool) -> Result<u8, Error> {
    let (settings, files) = (&globals.configuration.settings, &globals.configuration.files);
    if globals.json {
        let rows: Vec<_> = settings.rows().map(row).collect();
        let files = json!({"project": text(files.project.as_deref()), "user": text(files.user.as_deref())});
        document("config", &json!({"settings": rows, "files": files}))?;
        return Ok(exit::OK);
    }
    let heading = ["key", "value", "origin"];
    let columns = if with_origin { 3 } else { 2 };
    let rows = settings.rows().map(|row| {
        let mut cells = vec![row.key.clone(), shown(row), row.origin.to_string()];
        cells.truncate(columns);
        cells
    });
    print(&table(&heading[..columns], rows))?;
    Ok(exit::OK)
}

fn shown(row: &Row) -> String {
    row.value.as_ref().map_or_else(|| "-".into(), ToString::to_string)
}

fn row(row: &Row) -> Value {
    let value = match &row.value {
        Some(config::Value::Whole(number)) => json!(number),
        Some(value) => json!(value.to_string()),
        None => Value::Null,
    };
    let setting = row.setting;
    json!({"key": row.key, "value": value, "origin": origin(&row.origin), "variable": setting.variable,
        "doc": setting.doc})
}

fn origin(origin: &Origin) -> Value {
    let layer = origin.layer();
    match origin {
        Origin::Default => json!({"layer": layer}),
        Origin::User { file, line } | Origin::Project { file, line } => {
            json!({"layer": layer, "file": text(Some(file)), "line": line})
        }
        Origin::Environment { variable } => json!({"layer": layer, "variable": variable}),
        Origin::Flag { flag } => json!({"layer": layer, "flag": flag}),
    }
}

fn text(path: Option<&std::path::Path>) -> Value {
    path.map_or(Value::Null, |path| path.to_string_lossy().into())
}

/// Also when what is in them is wrong: this is how to find out which they are.
fn path(flags: &Flags) -> Result<u8, Error> {
    let surroundings = Surroundings::of_process();
    let Files { project, user } = config::files(&surroundings, &globals::said(flags)?)?;
    let own = surroundings.user_file.as_deref();
    if flags.json {
        let fields =
            json!({"project": text(project.as_deref()), "user": text(own), "user_exists": user.is_some()});
        document("config-path", &fields)?;
        return Ok(exit::OK);
    }
    let project = match &project {
        Some(project) => project.display().to_string(),
        None => format!("none: no {} from {} upward", config::FILE, surroundings.directory.display()),
    };
    let user = match (own, user) {
        (Some(own), Some(_)) => own.display().to_string(),
        (Some(own), None) => format!("none: no {}", own.display()),
        (None, _) => "none: there is no home directory".into(),
    };
    print(&pairs(&[("project", project), ("user", user)]))?;
    Ok(exit::OK)
}
