//! Which objects a verb is about: by type and name, by label, or as manifests say.

use std::path::PathBuf;

use clap::Args;

use super::{
    client::{Client, escape},
    discovery::{self, Resource},
    files, targets,
};

/// The flags that name objects.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// TYPE, TYPE NAME… or TYPE/NAME…; several types with commas
    #[arg(required_unless_present = "filename")]
    pub targets: Vec<String>,
    /// The objects that a manifest file or folder, or - for standard input, names
    #[arg(short, long, value_delimiter = ',', value_name = "FILE", conflicts_with = "targets")]
    filename: Vec<PathBuf>,
    /// Also read folders below the given ones
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Objects with these field values
    #[arg(long, value_name = "FIELDS")]
    field_selector: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// One request: for a collection, or for one object of it.
pub struct Wanted {
    pub resource: Resource,
    pub path: String,
    /// `None`: the whole collection.
    pub name: Option<String>,
}

impl Which {
    /// # Errors
    /// Unknown types, and manifests that cannot be read.
    pub fn wanted(&self, client: &Client, resources: &[Resource]) -> anyhow::Result<Vec<Wanted>> {
        if self.filename.is_empty() {
            self.by_words(client, resources)
        } else {
            self.by_manifest(client, resources)
        }
    }

    fn by_words(&self, client: &Client, resources: &[Resource]) -> anyhow::Result<Vec<Wanted>> {
        let (kind, names) = targets(&self.targets)?;
        let kinds = discovery::named(resources, &kind)?;
        let namespace = (!self.all_namespaces).then_some(client.namespace.as_str());
        let selectors = [("labelSelector", &self.selector), ("fieldSelector", &self.field_selector)];
        let query: Vec<_> = selectors
            .iter()
            .filter_map(|(name, selector)| Some(format!("{name}={}", escape(selector.as_ref()?))))
            .collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let mut wanted = Vec::new();
        for resource in kinds.into_iter().filter(|r| r.verbs.iter().any(|v| v == "list")) {
            let collection = resource.path(namespace);
            if names.is_empty() {
                let path = format!("{collection}{query}");
                wanted.push(Wanted { resource: resource.clone(), path, name: None });
            }
            wanted.extend(names.iter().map(|name| Wanted {
                resource: resource.clone(),
                path: format!("{collection}/{name}"),
                name: Some(name.clone()),
            }));
        }
        Ok(wanted)
    }

    fn by_manifest(&self, client: &Client, resources: &[Resource]) -> anyhow::Result<Vec<Wanted>> {
        let mut wanted = Vec::new();
        for source in files::read(&self.filename, self.recursive)? {
            let value = &source.document.value;
            let resource = discovery::of_manifest(resources, value)?.clone();
            let namespace = value["metadata"]["namespace"].as_str().unwrap_or(&client.namespace);
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            let path = format!("{}/{name}", resource.path(Some(namespace)));
            wanted.push(Wanted { resource, path, name: Some(name.to_owned()) });
        }
        Ok(wanted)
    }
}
