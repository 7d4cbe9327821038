//! The table of kinds: one row and one file a kind.
//!
//! A row says how a kind is named, stored, defaulted, validated and printed; router, discovery,
//! OpenAPI, printer columns, store keys and garbage collection iterate the table. A new kind is a
//! file and a row.
//! Deliberately absent: HTTP, storage, clocks (a `now` is an argument).

pub mod addresses;
mod at;
pub mod builds;
pub mod certificate_request;
pub mod certificate_signing_request;
mod columns;
mod component_status;
mod config_map;
mod containers;
mod controller_revision;
mod cron_job;
mod csi;
mod daemon_set;
mod deployment;
mod edit;
mod endpoint_slice;
mod endpoints;
mod event;
pub mod field;
pub mod fields;
pub mod flow_control;
mod horizontal_pod_autoscaler;
pub mod ingress;
mod job;
pub mod labels;
pub mod lease;
mod limit_range;
mod meta;
pub mod metrics;
pub mod names;
mod namespace;
mod network_policy;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
pub mod placement;
pub mod pod;
mod pod_cells;
mod pod_disruption_budget;
mod pod_spec;
mod pod_template;
mod pod_update;
mod pod_warnings;
mod priority_class;
pub mod quantity;
mod rbac;
#[cfg(test)]
mod refusals;
pub mod registry;
mod replica_set;
mod replication_controller;
pub mod resource_names;
mod resource_quota;
pub mod resources;
mod reviews;
mod runtime_class;
pub mod scale;
pub mod schedule;
mod scheduling;
pub mod schema;
mod secret;
mod service;
mod service_account;
mod service_cidr;
mod stateful_set;
mod storage_class;
mod volume_attachment;
mod volume_sources;
pub mod volumes;
mod workload;

pub use field::{ErrorList, FieldError};
pub use serde_json::Value;

/// The Kubernetes version whose behaviour server and nodes have, and whose build they are.
pub const VERSION: &str = concat!("v1.36.0+sampan.", env!("CARGO_PKG_VERSION"));

/// Where objects of a kind live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In SQLite: an acknowledged write survives a power cut.
    Disk,
    /// In memory only: Events, Leases (the flash budget).
    Memory,
    /// Nowhere: a create is answered (SubjectAccessReview, TokenReview).
    Virtual,
}

/// The part of an object that a request addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subresource {
    /// The object's status.
    Status,
    /// `autoscaling/v1` Scale of a workload.
    Scale,
    /// Any other, handled by the API by name (`log`, `exec`, `binding`, `eviction`, `token`, …).
    Other(&'static str),
}

impl Subresource {
    /// The last path segment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Other(name) => name,
        }
    }
}

/// A printer column (`meta.k8s.io/v1` TableColumnDefinition).
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    /// A text of several words, or the path of the field whose description it has.
    pub description: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// What one kind does with an object, as pure functions on its JSON form.
///
/// The API has already pruned and type-checked the value against the schema when these are called.
#[derive(Clone, Copy)]
pub struct Strategy {
    /// Fills in upstream's defaults. Idempotent.
    pub default: fn(&mut Value),
    /// On create, before validation: drops what a client may not set (status).
    pub prepare_create: fn(&mut Value),
    /// On update of the main resource, before validation: keeps what this request may not change
    /// (status), and says through `metadata.generation` when the spec has changed.
    pub prepare_update: fn(new: &mut Value, old: &Value),
    /// On update of `status`: everything but status (and what upstream lets through) from `old`.
    pub prepare_status: fn(new: &mut Value, old: &Value),
    /// Errors of a new object.
    pub validate: fn(&Value) -> ErrorList,
    /// Errors of a change, beside those that `validate` finds in `new`.
    pub validate_update: fn(new: &Value, old: &Value) -> ErrorList,
    /// Errors of a change through a subresource, where they are others than `validate_update`'s.
    pub validate_part: Option<fn(Subresource, new: &Value, old: &Value) -> ErrorList>,
    /// `Warning` header texts for a create or an update (deprecated or unsupported fields).
    pub warnings: fn(&Value) -> Vec<String>,
    /// The kind's own field selectors beside `metadata.name` and `metadata.namespace`.
    pub selectable: fn(&Value) -> Vec<(&'static str, String)>,
    /// The cells of one row; as many as the kind has columns.
    pub cells: fn(&Value, now: jiff::Timestamp) -> Vec<Value>,
    /// By what the rows of a Table stand, where it is not the name.
    pub table_rank: Option<fn(&Value) -> i64>,
}

impl Strategy {
    /// Of a kind without spec and status: what the client says is the object.
    pub const PLAIN: Self = Self {
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        prepare_status: |_, _| {},
        validate: |_| Vec::new(),
        validate_update: |new, old| meta::check_update(new, old, |_, _, _| {}),
        validate_part: None,
        warnings: |_| Vec::new(),
        selectable: |_| Vec::new(),
        cells: columns::created_cells,
        table_rank: None,
    };

    /// Of a kind with a status subresource whose `metadata.generation` upstream leaves unset.
    pub const WITH_STATUS: Self = Self {
        prepare_create: |new| remove(new, "status"),
        prepare_update: |new, old| replace(new, "status", old),
        prepare_status: Self::SPEC_AND_STATUS.prepare_status,
        ..Self::PLAIN
    };

    /// Of a kind without status whose `metadata.generation` counts the changes of its spec.
    pub const SPEC_ONLY: Self = Self {
        prepare_create: |new| new["metadata"]["generation"] = 1.into(),
        prepare_update: count_generation,
        ..Self::PLAIN
    };

    /// Of a kind with spec and status: status changes through its subresource only, and
    /// `metadata.generation` counts the changes of everything but metadata and status.
    pub const SPEC_AND_STATUS: Self = Self {
        prepare_create: |new| {
            remove(new, "status");
            new["metadata"]["generation"] = 1.into();
        },
        prepare_update: |new, old| {
            replace(new, "status", old);
            count_generation(new, old);
        },
        prepare_status: |new, old| keep_all_but_status(new, old, false),
        ..Self::PLAIN
    };
}

/// Of a status update: spec and owners are `old`'s, status and annotations are `new`'s; labels are
/// `new`'s only where upstream lets them through (Pods, Nodes).
fn keep_all_but_status(new: &mut Value, old: &Value, labels: bool) {
    let status = new.get("status").cloned();
    let mut metadata = new["metadata"].take();
    let kept: &[&str] = if labels {
        &["ownerReferences", "generation"]
    } else {
        &["ownerReferences", "generation", "labels"]
    };
    for field in kept {
        replace(&mut metadata, field, &old["metadata"]);
    }
    *new = old.clone();
    new["metadata"] = metadata;
    match status {
        Some(status) => new["status"] = status,
        None => remove(new, "status"),
    }
}

/// One generation more when anything but metadata and status differs.
fn count_generation(new: &mut Value, old: &Value) {
    let same = differing_sections(new, old).next().is_none();
    let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
    new["metadata"]["generation"] = (generation + i64::from(!same)).into();
}

/// How long ago the object was created, as kubectl writes durations.
pub fn age(object: &Value, now: jiff::Timestamp) -> String {
    human_since(&object["metadata"]["creationTimestamp"], now)
}

/// How long ago an RFC 3339 time was, as kubectl writes durations.
pub fn human_since(time: &Value, now: jiff::Timestamp) -> String {
    time.as_str()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok())
        .map_or_else(|| "<unknown>".to_owned(), |then| human_duration(now.duration_since(then)))
}

/// `k8s.io/apimachinery/pkg/util/duration.HumanDuration`.
pub fn human_duration(duration: jiff::SignedDuration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{rest}{small}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// The top-level sections, but for metadata and status, in which two objects differ.
pub fn differing_sections<'a>(new: &'a Value, old: &'a Value) -> impl Iterator<Item = &'a str> {
    let keys = |v: &'a Value| v.as_object().into_iter().flat_map(|o| o.keys()).map(String::as_str);
    keys(new)
        .chain(keys(old).filter(|k| new.get(*k).is_none()))
        .filter(|k| !matches!(*k, "metadata" | "status" | "apiVersion" | "kind"))
        .filter(|k| new.get(*k) != old.get(*k))
}

/// Takes a field away, if it is there.
pub fn remove(object: &mut Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(field);
    }
}

/// Makes a field of `object` be as it is in `other`, also when it is absent there.
pub fn replace(object: &mut Value, field: &str, other: &Value) {
    match other.get(field) {
        Some(value) => object[field] = value.clone(),
        None => remove(object, field),
    }
}

/// A row of the table.
#[derive(Clone, Copy)]
pub struct Kind {
    /// API group; empty for core.
    pub group: &'static str,
    pub version: &'static str,
    /// `Deployment`.
    pub kind: &'static str,
    /// `deployments`: the path segment, and with the group the store's resource.
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// The type's name in the schema (`io.k8s.api.apps.v1.Deployment`).
    pub schema: &'static str,
    pub durability: Durability,
    /// Where the objects are stored when it is not under this row: another row's
    /// `(group, version, plural)` and the conversions from and to it (HPA v1, events.k8s.io).
    pub stored_as: Option<StoredAs>,
    /// Whether a PUT makes an object that is not there (upstream's `AllowCreateOnUpdate`).
    pub created_by_put: bool,
    /// Whether an update must say of which revision it is (not upstream's `AllowUnconditionalUpdate`).
    pub updated_with_revision: bool,
    /// What every answer about it warns of, when the kind is on its way out.
    pub deprecated: Option<&'static str>,
    pub columns: &'static [Column],
    pub strategy: Strategy,
}

/// A row that is another form of objects stored under a different row.
#[derive(Clone, Copy)]
pub struct StoredAs {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub to_stored: fn(Value) -> Value,
    pub from_stored: fn(Value) -> Value,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether a delete answers with the object instead of a Status (upstream's `ReturnDeletedObject`).
    pub fn returns_deleted(&self) -> bool {
        const OF_CORE: [&str; 7] = [
            "Pod",
            "Service",
            "ServiceAccount",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "ResourceQuota",
            "PodTemplate",
        ];
        match self.group {
            "" => OF_CORE.contains(&self.kind),
            "storage.k8s.io" => self.kind != "CSIStorageCapacity",
            _ => false,
        }
    }

    /// `pods`, `deployments.apps`: as error texts and the store name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}
