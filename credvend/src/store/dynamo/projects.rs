//! The projects' table: `ProjectId` → `RoleArn`, as in the IAM Credentials API (v1), with what `projects.toml` may say
//! beside it (`Duration`, `Account`, `Clusters`, `SourceIdentity`, `Roles`, …: the file's words in the table's spelling).
//!
//! It is read as the text that the file would have, so that one parser decides what is valid, for the whole map at once.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::AttributeValue;
use credd_protocol::Region;
use toml_edit::{DocumentMut, Item as TomlItem, Table, TableLike, Value};

use super::db::{Db, Refused};
use super::item::{Item, Row, text};
use super::tables::PROJECT_ID;
use crate::projects::{Problem, ProjectMap, parse_in};
use crate::store::StoreError;

/// Why a map of projects is not what the table should give, or take.
#[derive(Debug, thiserror::Error)]
pub enum ProjectsError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the table, or would be, is not valid: all problems.
    #[error("the projects' table is not valid")]
    Invalid(Vec<Problem>),
    /// Somebody else changed the project at the same time.
    #[error("somebody else changed project {0} at the same time; look at it and try again")]
    Changed(String),
}

async fn items(db: &Db) -> Result<BTreeMap<String, Item>, StoreError> {
    let mut all = BTreeMap::new();
    let mut from = None;
    loop {
        let request =
            db.client.scan().table_name(&db.tables.projects).consistent_read(true).set_exclusive_start_key(from);
        let answer = db.call(|| request.clone().send()).await?;
        for item in answer.items.unwrap_or_default() {
            all.insert(Row(&item).text(PROJECT_ID)?.to_owned(), item);
        }
        from = answer.last_evaluated_key.filter(|key| !key.is_empty());
        if from.is_none() {
            return Ok(all);
        }
    }
}

/// `RoleArn` → `role-arn`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// `role-arn` → `RoleArn`.
fn pascal(name: &str) -> String {
    let first_up = |part: &str| {
        let mut chars = part.chars();
        chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect::<String>()
    };
    name.split('-').map(first_up).collect()
}

fn toml_table(attributes: &Item) -> Table {
    let mut table = Table::new();
    let mut sorted: Vec<_> = attributes.iter().filter(|(name, _)| *name != PROJECT_ID).collect();
    sorted.sort_by_key(|(name, _)| *name);
    for (name, value) in sorted {
        let item = match value {
            AttributeValue::M(map) if name == "Roles" => {
                let mut roles = Table::new();
                roles.set_implicit(true);
                let mut sorted: Vec<_> = map.iter().collect();
                sorted.sort_by_key(|(role, _)| *role);
                for (role, value) in sorted {
                    let role_table = value.as_m().map_or_else(|_| Table::new(), toml_table);
                    roles.insert(role, TomlItem::Table(role_table));
                }
                TomlItem::Table(roles)
            }
            AttributeValue::S(text) => TomlItem::Value(text.as_str().into()),
            AttributeValue::Bool(flag) => TomlItem::Value((*flag).into()),
            AttributeValue::N(digits) => match digits.parse::<i64>() {
                Ok(number) => TomlItem::Value(number.into()),
                Err(_) => TomlItem::Value(digits.as_str().into()),
            },
            AttributeValue::L(words) if name == "Clusters" => match words.iter().map(|word| word.as_s().ok()).collect()
            {
                Some(words) => array(words),
                None => TomlItem::Value(false.into()),
            },
            // As an administrator may write it by hand.
            AttributeValue::Ss(words) if name == "Clusters" => {
                let mut words: Vec<&String> = words.iter().collect();
                words.sort();
                array(words)
            }
            // As something that the parser refuses by its name.
            _ => TomlItem::Value(Value::Array(Default::default())),
        };
        table.insert(&kebab(name), item);
    }
    table
}

fn array(words: Vec<&String>) -> TomlItem {
    TomlItem::Value(Value::Array(words.into_iter().map(String::as_str).collect()))
}

fn attributes(table: &dyn TableLike) -> Item {
    let value = |item: &TomlItem| match item {
        TomlItem::Value(Value::Boolean(flag)) => Some(AttributeValue::Bool(*flag.value())),
        TomlItem::Value(Value::Integer(number)) => Some(AttributeValue::N(number.value().to_string())),
        TomlItem::Value(Value::String(words)) => Some(text(words.value())),
        TomlItem::Value(Value::Array(words)) => {
            Some(AttributeValue::L(words.iter().filter_map(|word| word.as_str().map(text)).collect()))
        }
        other => {
            let roles = other.as_table_like()?;
            let role = |(name, item): (&str, &TomlItem)| {
                Some((name.to_owned(), AttributeValue::M(attributes(item.as_table_like()?))))
            };
            Some(AttributeValue::M(roles.iter().filter_map(role).collect()))
        }
    };
    table.iter().filter_map(|(name, item)| Some((pascal(name), value(item)?))).collect()
}

fn text_of(items: &BTreeMap<String, Item>) -> String {
    let mut document = DocumentMut::new();
    let mut projects = Table::new();
    projects.set_implicit(true);
    for (project, item) in items {
        projects.insert(project, TomlItem::Table(toml_table(item)));
    }
    document.insert("projects", TomlItem::Table(projects));
    document.to_string()
}

/// Nobody has seen the text: its lines become the projects' names.
fn named(text: &str, problems: Vec<Problem>) -> Vec<Problem> {
    let whose = |line: usize| {
        let headers = text.lines().take(line).filter_map(|l| l.strip_prefix("[projects."));
        headers.last().map(|rest| rest.trim_end_matches(']').to_owned())
    };
    let name = |problem: Problem| match whose(problem.line) {
        Some(project) => Problem { line: 0, text: format!("project {project}: {}", problem.text) },
        None => Problem { line: 0, text: problem.text },
    };
    problems.into_iter().map(name).collect()
}

/// The table as the file's text, and the map in it.
pub(super) async fn read(db: &Db, region: Option<&Region>) -> Result<(String, ProjectMap), ProjectsError> {
    let text = text_of(&items(db).await?);
    let map = parse_in(&text, region).map_err(|problems| ProjectsError::Invalid(named(&text, problems)))?;
    Ok((text, map))
}

/// Changes the table as `change` changes the file's text: the projects that differ, each only while nobody else does.
pub(super) async fn change(
    db: &Db,
    change: impl FnOnce(&str) -> Result<String, Vec<Problem>>,
) -> Result<(), ProjectsError> {
    let old = items(db).await?;
    let text = text_of(&old);
    let changed = change(&text).map_err(|problems| ProjectsError::Invalid(named(&text, problems)))?;
    let document: DocumentMut = changed.parse().map_err(|e: toml_edit::TomlError| {
        ProjectsError::Invalid(vec![Problem { line: 0, text: e.message().into() }])
    })?;
    let projects = document.get("projects").and_then(TomlItem::as_table_like);
    let mut new: BTreeMap<String, Item> = BTreeMap::new();
    for (project, item) in projects.into_iter().flat_map(|p| p.iter()) {
        let mut attributes = item.as_table_like().map(attributes).unwrap_or_default();
        attributes.insert(PROJECT_ID.into(), super::item::text(project));
        new.insert(project.to_owned(), attributes);
    }
    for (project, item) in &new {
        if old.get(project) != Some(item) {
            put(db, project, old.get(project), item).await?;
        }
    }
    for (project, item) in old.iter().filter(|(project, _)| !new.contains_key(*project)) {
        delete(db, project, item).await?;
    }
    Ok(())
}

/// That the item is what it was: an expression with its names and values.
fn unchanged(old: Option<&Item>) -> (String, BTreeMap<String, String>, Item) {
    let Some(old) = old else { return (format!("attribute_not_exists({PROJECT_ID})"), BTreeMap::new(), Item::new()) };
    let (mut conditions, mut names, mut values) = (vec![], BTreeMap::new(), Item::new());
    for (i, (name, value)) in old.iter().enumerate() {
        conditions.push(format!("#n{i} = :v{i}"));
        names.insert(format!("#n{i}"), name.clone());
        values.insert(format!(":v{i}"), value.clone());
    }
    (conditions.join(" AND "), names, values)
}

fn some<T: IntoIterator<Item = (K, V)>, K: Eq + std::hash::Hash, V>(map: T) -> Option<std::collections::HashMap<K, V>> {
    let map: std::collections::HashMap<K, V> = map.into_iter().collect();
    (!map.is_empty()).then_some(map)
}

async fn put(db: &Db, project: &str, old: Option<&Item>, new: &Item) -> Result<(), ProjectsError> {
    let (condition, names, values) = unchanged(old);
    let request = db
        .client
        .put_item()
        .table_name(&db.tables.projects)
        .set_item(Some(new.clone()))
        .condition_expression(condition)
        .set_expression_attribute_names(some(names))
        .set_expression_attribute_values(some(values));
    match db.call(|| request.clone().send()).await {
        Ok(_) => Ok(()),
        Err(Refused::Service(PutItemError::ConditionalCheckFailedException(_), _)) => {
            Err(ProjectsError::Changed(project.to_owned()))
        }
        Err(other) => Err(StoreError::from(other).into()),
    }
}

async fn delete(db: &Db, project: &str, old: &Item) -> Result<(), ProjectsError> {
    let (condition, names, values) = unchanged(Some(old));
    let request = db
        .client
        .delete_item()
        .table_name(&db.tables.projects)
        .key(PROJECT_ID, text(project))
        .condition_expression(condition)
        .set_expression_attribute_names(some(names))
        .set_expression_attribute_values(some(values));
    match db.call(|| request.clone().send()).await {
        Ok(_) => Ok(()),
        Err(Refused::Service(DeleteItemError::ConditionalCheckFailedException(_), _)) => {
            Err(ProjectsError::Changed(project.to_owned()))
        }
        Err(other) => Err(StoreError::from(other).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(project: &str, more: &[(&str, AttributeValue)]) -> (String, Item) {
        let mut item = Item::from([(PROJECT_ID.to_owned(), text(project))]);
        item.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        (project.to_owned(), item)
    }

    const ARN: &str = "arn:aws:iam::123456789012:role/genomics";

    #[test]
    fn the_v1_items_read_and_come_back() {
        let roles = AttributeValue::M(Item::from([(
            "train".to_owned(),
            AttributeValue::M(Item::from([
                ("RoleArn".to_owned(), text("arn:aws:iam::123456789012:role/team/train")),
                ("SourceIdentity".to_owned(), AttributeValue::Bool(true)),
            ])),
        )]));
        let clusters = AttributeValue::L(vec![text("lab"), text("hpc")]);
        let items = BTreeMap::from([
            item(
                "genomics",
                &[("RoleArn", text(ARN)), ("Duration", text("2h")), ("Roles", roles), ("Clusters", clusters)],
            ),
            item("Odd.Name=1", &[("RoleArn", text(ARN)), ("Account", text("odd"))]),
        ]);
        let written = text_of(&items);
        let map = crate::projects::parse(&written).unwrap();
        assert_eq!(map.projects.len(), 2);
        let genomics = map.by_id(&"genomics".parse().unwrap()).unwrap();
        assert_eq!(genomics[&"default".parse().unwrap()].duration_seconds, 7200);
        let on = |cluster: &str| map.why_not_on(&"genomics".parse().unwrap(), &cluster.parse().unwrap());
        assert!(on("lab").is_none() && on("HPC").is_none() && on("other").unwrap().contains("hpc, lab"));
        assert!(genomics[&"train".parse().unwrap()].source_identity);
        let document: DocumentMut = written.parse().unwrap();
        for (project, item) in &items {
            let table = document["projects"][project.as_str()].as_table_like().unwrap();
            let mut again = attributes(table);
            again.insert(PROJECT_ID.into(), text(project.as_str()));
            assert_eq!(again, *item);
        }
    }

    #[test]
    fn problems_name_the_project() {
        let items = BTreeMap::from([
            item("a", &[("RoleArn", text(ARN))]),
            item("b", &[("RoleArn", text("nonsense"))]),
            item("c", &[("RoleArn", text(ARN)), ("Colour", text("red"))]),
        ]);
        let written = text_of(&items);
        let problems = named(&written, crate::projects::parse(&written).unwrap_err());
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(
            told.iter().any(|p| p.starts_with("project b: ")) && told.iter().any(|p| p.starts_with("project c: ")),
            "{told:?}"
        );
        assert!(!told.iter().any(|p| p.contains("project a")), "{told:?}");
    }

    #[test]
    fn clusters_may_be_a_set_and_nothing_else() {
        let set = |value: AttributeValue| {
            let items = BTreeMap::from([item("a", &[("RoleArn", text(ARN)), ("Clusters", value)])]);
            crate::projects::parse(&text_of(&items))
        };
        let map = set(AttributeValue::Ss(vec!["lab".into(), "hpc".into()])).unwrap();
        assert_eq!(map.clusters.values().next().unwrap().len(), 2);
        for bad in [text("lab"), AttributeValue::L(vec![AttributeValue::Bool(true)]), AttributeValue::L(vec![])] {
            assert!(set(bad).unwrap_err()[0].text.contains("clusters"));
        }
    }
}
