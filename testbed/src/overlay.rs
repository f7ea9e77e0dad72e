//! A TOML document with another laid over it: tables are merged, everything else is replaced.

use anyhow::Result;
use toml::{Table, Value};

/// `over` laid over `base`. Of an array of tables (`[[cluster]]`) the elements are merged pair by pair.
pub fn overlaid(base: &str, over: &str) -> Result<String> {
    let mut document: Table = toml::from_str(base)?;
    merge(&mut document, toml::from_str(over)?);
    Ok(toml::to_string(&document)?)
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (Some(Value::Array(below)), Value::Array(above)) if are_tables(below) && are_tables(&above) => {
                for (nth, element) in above.into_iter().enumerate() {
                    match (below.get_mut(nth), element) {
                        (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
                        (_, element) => below.push(element),
                    }
                }
            }
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

fn are_tables(values: &[Value]) -> bool {
    !values.is_empty() && values.iter().all(Value::is_table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_merge_and_the_rest_is_replaced() {
        let base = "a = 1\nl = [1, 2]\n[t]\nx = 1\ny = 2\n[[c]]\nname = \"lab\"\n";
        let over = "l = [3]\n[t]\ny = 3\n[[c]]\nsecret = true\n[[c]]\nname = \"second\"\n";
        let merged: Table = toml::from_str(&overlaid(base, over).unwrap()).unwrap();
        let expected =
            "a = 1\nl = [3]\n[t]\nx = 1\ny = 3\n[[c]]\nname = \"lab\"\nsecret = true\n[[c]]\nname = \"second\"\n";
        assert_eq!(merged, toml::from_str(expected).unwrap());
    }
}
