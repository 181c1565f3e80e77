//! What the settings say of rates and of countable resources.

use std::collections::BTreeMap;

use eclosion_arbitration::Rate;
use eclosion_dag_tracker::plan::units;
use eclosion_schemas::Error;

use super::{RATES, RESOURCES, Settings};

/// These have settings of their own.
const COUNTED_ELSEWHERE: [(&str, &str); 2] =
    [("cpu", "arbitration.cpu_millis"), ("memory", "arbitration.memory_bytes")];

/// # Errors
/// `config.value` names the setting that is no rate.
pub(crate) fn rates(settings: &Settings) -> Result<BTreeMap<String, Rate>, Error> {
    let rates = settings.members(&RATES).map(|(name, text)| {
        let rate = text.parse::<Rate>().map_err(|why| {
            let error = Error::invalid("config.value", format!("`rates.{name}` is no rate"));
            match why.help {
                Some(help) => error.help(help),
                None => error,
            }
        })?;
        Ok((name.to_owned(), rate))
    });
    rates.collect()
}

/// # Errors
/// `config.value` names the setting that is neither a count nor a size.
pub(crate) fn resources(settings: &Settings) -> Result<BTreeMap<String, u64>, Error> {
    let resources = settings.members(&RESOURCES).map(|(name, text)| {
        if let Some((_, key)) = COUNTED_ELSEWHERE.iter().find(|(counted, _)| *counted == name) {
            let message = format!("`resources.{name}` is counted already");
            return Err(Error::invalid("config.value", message).help(format!("set {key}")));
        }
        let amount = units::size_bytes(&serde_json::Value::String(text.to_owned())).map_err(|_| {
            Error::invalid("config.value", format!("`resources.{name}` is no amount"))
                .help("write how many there are, such as 3, or a size, such as \"8GiB\"")
        })?;
        Ok((name.to_owned(), amount))
    });
    resources.collect()
}
