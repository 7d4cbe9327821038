//! The verbs of resources, from a request to an answer.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{HeaderMap, Request, StatusCode, body::Incoming};
use serde_json::{Value, json};

use super::{
    Api, authz,
    body::{self, Expected, FieldValidation},
    negotiate::{self, Accepted, Encoding, Shape},
    render::{IncludeObject, Renderer},
    reply::{self, Reply},
    request::{Query, RequestInfo, ResourcePath},
    select::{Filter, Page, PageState, WatchOptions, encode_token},
    status::{self, Refusal},
    streaming,
    watching::Watching,
};
use crate::{
    clock::Clock as _,
    ids::Revision,
    kinds::{
        Durability, FieldError, Kind, Subresource, registry, remove,
        scale::SCALE,
        schema::{self, proto},
    },
    objects::{self, DeleteOptions, Propagation, User, WriteOptions},
    store::{Listing, Object, StoreError},
};

/// How long a list in pages shows the state in which it began (seconds): upstream forgets a state after
/// five minutes, and clients reckon with it.
const LIST_SECONDS_MAX: i64 = 300;

/// A resource request on its way.
pub struct Call {
    pub api: Arc<Api>,
    pub info: RequestInfo,
    pub path: ResourcePath,
    /// The row of the path.
    pub kind: &'static Kind,
    /// The row under which the objects lie.
    pub stored: &'static Kind,
    pub subresource: Option<Subresource>,
    pub query: Query,
    pub headers: HeaderMap,
    pub user: User,
    pub warnings: Vec<String>,
}

/// Answers a request for a resource.
pub async fn handle(
    api: &Arc<Api>,
    user: User,
    request: Request<Incoming>,
    query: Query,
    info: RequestInfo,
) -> Result<Reply, Refusal> {
    let path = info.resource.clone().ok_or(Refusal::NoSuchPath)?;
    let kind = registry::by_path(&path.group, &path.version, &path.plural).ok_or(Refusal::NoSuchPath)?;
    // A method that is no verb (`OPTIONS`) can only be meant for what stands behind a proxy.
    if info.verb.is_empty() && path.subresource != "proxy" {
        return Err(Refusal::NoSuchMethod);
    }
    let scoped = kind.kind == "Namespace" || kind.namespaced || path.namespace.is_empty();
    let needs_namespace = kind.namespaced && path.namespace.is_empty();
    if !scoped || (needs_namespace && !matches!(info.verb, "list" | "watch" | "deletecollection")) {
        return Err(if info.verb == "create" && needs_namespace {
            Refusal::NoSuchMethod
        } else {
            Refusal::NoSuchPath
        });
    }
    let subresource = match path.subresource.as_str() {
        "" => None,
        name => Some(*kind.subresources.iter().find(|s| s.name() == name).ok_or(Refusal::NoSuchPath)?),
    };
    let headers = request.headers().clone();
    let mut call = Call {
        api: Arc::clone(api),
        stored: registry::stored(kind),
        info,
        path,
        kind,
        subresource,
        query,
        headers,
        user,
        warnings: kind.deprecated.map(str::to_owned).into_iter().collect(),
    };
    let verb = call.info.verb;
    if subresource.is_none() && !kind.verbs.contains(&verb) {
        return Err(Refusal::NoSuchMethod);
    }
    if let Some(Subresource::Other(name)) = subresource
        && streaming::is_stream(name, verb)
    {
        return streaming::serve(&call, name, request).await;
    }
    let body = request.into_body();
    let mut answer = match (verb, subresource) {
        ("get", None) => call.get(),
        ("get", Some(subresource)) => call.get_subresource(subresource),
        ("list", None) => call.list(),
        ("watch", None) => call.watch(),
        ("create", None) if call.info.collection => {
            let bytes = body::read(body).await?;
            call.create(&bytes).await
        }
        ("create", Some(Subresource::Other(name))) => {
            let bytes = body::read(body).await?;
            call.create_subresource(name, &bytes).await
        }
        ("update" | "patch", _) if call.info.collection => Err(Refusal::NoSuchMethod),
        ("update", Some(Subresource::Scale)) => {
            let bytes = body::read(body).await?;
            call.update_scale(&bytes).await
        }
        ("update", None | Some(Subresource::Status | Subresource::Other(_))) => {
            let bytes = body::read(body).await?;
            call.update(&bytes).await
        }
        ("patch", _) => {
            let bytes = body::read(body).await?;
            call.patch(&bytes).await
        }
        ("delete", None) => {
            let bytes = body::read(body).await?;
            call.delete(&bytes).await
        }
        ("deletecollection", None) => {
            let bytes = body::read(body).await?;
            call.delete_collection(&bytes).await
        }
        _ => Err(Refusal::NoSuchMethod),
    }?;
    reply::warn(&mut answer, &call.warnings);
    Ok(answer)
}

impl Call {
    /// The namespace of the objects; a Namespace itself has none.
    pub fn namespace(&self) -> &str {
        if self.kind.namespaced { &self.path.namespace } else { "" }
    }

    fn pretty(&self) -> bool {
        if self.query.get("pretty").is_some() {
            return self.query.flag("pretty");
        }
        let agent = self.headers.get("user-agent").and_then(|v| v.to_str().ok()).unwrap_or_default();
        ["curl", "Wget", "Mozilla/5.0"].iter().any(|browser| agent.starts_with(browser))
    }

    fn renderer(&self, accepted: Accepted) -> Result<Renderer, Refusal> {
        let include = IncludeObject::asked(&self.query)?;
        Ok(Renderer { kind: self.kind, accepted, include, now: self.api.time.now() })
    }

    /// One object as an answer.
    pub fn object(&self, code: StatusCode, object: &Object) -> Result<Reply, Refusal> {
        let accepted = negotiate::resource(&self.headers, true, false)?;
        let renderer = self.renderer(accepted)?;
        if renderer.is_text(self.pretty()) {
            let text = [&renderer.one(object)[..], b"\n"].concat();
            return Ok(reply::reply(code, Encoding::Json.content_type(), reply::full(text)));
        }
        let value = renderer.shaped(renderer.tree(object), true);
        Ok(reply::value(code, accepted.encoding, self.pretty(), &value))
    }

    /// Any other value (Status, Scale, TokenRequest) as an answer.
    pub fn value(&self, code: StatusCode, value: &Value) -> Result<Reply, Refusal> {
        let mut accepted = negotiate::resource(&self.headers, true, false)?;
        if accepted.shape != Shape::Whole && value["kind"] == "Scale" {
            let renderer = Renderer { kind: &SCALE, ..self.renderer(accepted)? };
            let shaped = renderer.shaped(value.clone(), true);
            return Ok(reply::value(code, accepted.encoding, self.pretty(), &shaped));
        }
        if accepted.shape != Shape::Whole {
            accepted = Accepted::JSON;
        }
        Ok(reply::value(code, accepted.encoding, self.pretty(), value))
    }

    fn get(&self) -> Result<Reply, Refusal> {
        if let Some(asked) = self.query.filled("resourceVersion").and_then(|v| v.parse().ok()) {
            self.refuse_future(Revision(asked))?;
        }
        let object = self.api.objects.get(self.stored, self.namespace(), &self.path.name)?;
        self.object(StatusCode::OK, &object)
    }

    fn refuse_future(&self, asked: Revision) -> Result<(), Refusal> {
        let current = self.api.objects.store().revision();
        if asked > current {
            return Err(Refusal::TooLargeResourceVersion { asked: asked.0, current: current.0 });
        }
        Ok(())
    }

    fn filter(&self) -> Result<Filter, Refusal> {
        Filter::parse(self.kind, self.namespace(), &self.path.name, &self.query)
    }

    fn list(&self) -> Result<Reply, Refusal> {
        let accepted = negotiate::resource(&self.headers, false, true)?;
        let filter = self.filter()?;
        let page = Page::parse(&self.query)?;
        let (listing, after, revision) = self.state(&filter, &page)?;
        let mut matching = listing.items.into_iter().filter(|o| {
            after
                .as_ref()
                .is_none_or(|(ns, name)| (&*o.key.namespace, &*o.key.name) > (ns.as_str(), name.as_str()))
                && filter.matches(o)
        });
        let items: Vec<Arc<Object>> = match page.limit {
            Some(limit) => matching.by_ref().take(limit).collect(),
            None => matching.by_ref().collect(),
        };
        let rest = matching.count();
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if rest > 0
            && let Some(last) = items.last()
        {
            let began = match page.state {
                PageState::Continue { revision: Some(_), began, .. } => began,
                _ => self.api.time.now().as_second(),
            };
            let after = (&*last.key.namespace, &*last.key.name);
            metadata["continue"] = encode_token(after, Some((revision, began))).into();
            if filter.is_everything() {
                metadata["remainingItemCount"] = rest.into();
            }
        }
        let renderer = self.renderer(accepted)?;
        if renderer.is_text(self.pretty()) {
            let pieces = renderer.list(&metadata, &items);
            return Ok(reply::pieces(&self.headers, Encoding::Json.content_type(), pieces));
        }
        let value = renderer.list_tree(&metadata, &items);
        Ok(reply::value(StatusCode::OK, accepted.encoding, self.pretty(), &value))
    }

    /// The state that a page shows, the key it begins after, and the revision it is of.
    #[allow(clippy::type_complexity, reason = "three parts of one answer, used once")]
    fn state(
        &self,
        filter: &Filter,
        page: &Page,
    ) -> Result<(Listing, Option<(String, String)>, Revision), Refusal> {
        let store = self.api.objects.store();
        let resource = self.stored.resource();
        let newest = || store.list(&resource, filter.namespace());
        let at = |revision| store.list_at(&resource, filter.namespace(), revision);
        match &page.state {
            PageState::Newest => {
                let listing = newest();
                let revision = listing.revision;
                Ok((listing, None, revision))
            }
            PageState::NotOlderThan(asked) => {
                self.refuse_future(*asked)?;
                let listing = newest();
                let revision = listing.revision;
                Ok((listing, None, revision))
            }
            PageState::Exact(asked) => {
                self.refuse_future(*asked)?;
                let listing = at(*asked).map_err(|_| {
                    let message = "The resourceVersion for the provided list is too old.";
                    Refusal::from(objects::Error::Expired(message.to_owned()))
                })?;
                Ok((listing, None, *asked))
            }
            PageState::Continue { after, revision: Some(revision), began } => match at(*revision) {
                Ok(listing) if self.api.time.now().as_second() - began < LIST_SECONDS_MAX => {
                    Ok((listing, Some(after.clone()), *revision))
                }
                Ok(_) | Err(StoreError::Expired { .. }) => Err(Refusal::ContinueExpired {
                    message: "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.".to_owned(),
                    token: encode_token((&after.0, &after.1), None),
                }),
                Err(other) => Err(Refusal::internal(other.to_string())),
            },
            PageState::Continue { after, revision: None, .. } => {
                let listing = newest();
                let revision = listing.revision;
                Ok((listing, Some(after.clone()), revision))
            }
        }
    }

    fn watch(&self) -> Result<Reply, Refusal> {
        let accepted = negotiate::resource(&self.headers, true, true)?;
        let filter = self.filter()?;
        let options = WatchOptions::parse(&self.query)?;
        let renderer = self.renderer(accepted)?;
        let clock = Arc::clone(self.api.objects.clock());
        let store = self.api.objects.store();
        let stop = self.api.stop.clone();
        let watching =
            Watching::start(store, clock, filter, renderer, &options, stop, self.api.metrics.watch())?;
        let content_type = match accepted.encoding {
            Encoding::Json | Encoding::Yaml => "application/json",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        };
        Ok(reply::reply(StatusCode::OK, content_type, reply::streamed(watching.into_stream())))
    }

    /// Who writes, and how, of this request.
    pub fn write_options(&self) -> Result<WriteOptions, Refusal> {
        let kind = match self.info.verb {
            "create" => "CreateOptions.meta.k8s.io",
            "update" => "UpdateOptions.meta.k8s.io",
            "patch" => "PatchOptions.meta.k8s.io",
            _ => "DeleteOptions.meta.k8s.io",
        };
        let refuse = |error: FieldError| {
            Err(objects::Error::Invalid { kind: kind.to_owned(), name: String::new(), errors: vec![error] }
                .into())
        };
        let mut dry_run = false;
        for value in self.query.all("dryRun").filter(|v| !v.is_empty()) {
            if value != "All" {
                return refuse(FieldError::not_supported("dryRun", json!([value]), &["All"]));
            }
            dry_run = true;
        }
        let manager = self.query.get("fieldManager").unwrap_or_default();
        if manager.len() > 128 {
            return refuse(FieldError::too_long("fieldManager", 128));
        }
        if manager.chars().any(char::is_control) {
            return refuse(FieldError::invalid(
                "fieldManager",
                manager,
                "should only contain printable characters",
            ));
        }
        let manager = if manager.is_empty() { self.agent() } else { manager.to_owned() };
        Ok(WriteOptions { user: self.user.clone(), manager, tracked: true, dry_run })
    }

    /// The field manager of a client that names none: its user agent up to the first slash.
    fn agent(&self) -> String {
        let agent = self.headers.get("user-agent").and_then(|v| v.to_str().ok()).unwrap_or_default();
        agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(128).collect()
    }

    /// The object in a request's body.
    pub fn decode(&mut self, bytes: &Bytes) -> Result<Value, Refusal> {
        let encoding = negotiate::body_encoding(&self.headers)?;
        let options = if self.info.verb == "create" {
            "CreateOptions.meta.k8s.io"
        } else {
            "UpdateOptions.meta.k8s.io"
        };
        let validation = FieldValidation::parse(&self.query, options)?;
        let api_version = self.kind.api_version();
        let expected = Expected { api_version: &api_version, kind: self.kind.kind, schema: self.schema()? };
        let value = body::object(bytes, encoding, &expected, validation, &mut self.warnings)?;
        let namespace = value["metadata"]["namespace"].as_str().unwrap_or_default();
        if self.kind.namespaced && !namespace.is_empty() && namespace != self.namespace() {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(value)
    }

    /// The stored form of an object in the version of the request.
    pub fn to_stored(&self, value: Value) -> Value {
        match &self.kind.stored_as {
            Some(stored) => (stored.to_stored)(value),
            None => value,
        }
    }

    /// The object in the version of the request.
    pub fn requested_form(&self, value: Value) -> Value {
        match &self.kind.stored_as {
            Some(stored) => (stored.from_stored)(value),
            None => value,
        }
    }

    /// The type of the request's objects.
    pub fn schema(&self) -> Result<&'static schema::Type, Refusal> {
        schema::lookup(self.kind.schema)
            .ok_or_else(|| Refusal::internal(format!("{} has no schema", self.kind.kind)))
    }

    async fn create(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let options = self.write_options()?;
        let value = self.decode(bytes)?;
        if self.kind.durability == Durability::Virtual {
            return self.answer(value, &options).await;
        }
        self.warnings.extend((self.kind.strategy.warnings)(&value));
        self.refuse_escalation(&value, None)?;
        let value = self.to_stored(value);
        let created = self.api.objects.create(self.stored, self.namespace(), value, &options).await?;
        self.object(StatusCode::CREATED, &created)
    }

    async fn update(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let options = self.write_options()?;
        let value = self.decode(bytes)?;
        let given = value["metadata"]["name"].as_str().unwrap_or_default();
        if given.is_empty() {
            return Err(Refusal::bad_request("name must be provided"));
        }
        if given != self.path.name {
            return Err(Refusal::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                self.path.name
            )));
        }
        self.warnings.extend((self.kind.strategy.warnings)(&value));
        let objects = &self.api.objects;
        let name = &self.path.name;
        let old = match objects.get(self.stored, self.namespace(), name) {
            Err(error) if error.is_not_found() && self.may_appear() => {
                return self.create_by_put(value, &options).await;
            }
            old => old?,
        };
        let revision = value["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if self.kind.updated_with_revision && matches!(revision, "" | "0") {
            let detail = "must be specified for an update";
            let errors = vec![FieldError::invalid("metadata.resourceVersion", 0, detail)];
            return Err(
                objects::Error::Invalid { kind: self.kind.resource(), name: name.clone(), errors }.into()
            );
        }
        self.refuse_escalation(&value, Some(&old.value()))?;
        let value = self.to_stored(value);
        let updated =
            objects.update(self.stored, self.subresource, self.namespace(), name, value, &options).await?;
        self.object(StatusCode::OK, &updated)
    }

    /// Whether a PUT may make the object that it is about.
    fn may_appear(&self) -> bool {
        self.subresource.is_none() && self.kind.created_by_put
    }

    async fn create_by_put(&self, mut value: Value, options: &WriteOptions) -> Result<Reply, Refusal> {
        authz::authorize_creation(&self.api.objects, &self.user, &self.info)?;
        self.refuse_escalation(&value, None)?;
        let meta = &mut value["metadata"];
        if let Some(uid) = meta["uid"].as_str().filter(|uid| !uid.is_empty()) {
            let message = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
            let (resource, name) = (self.stored.resource(), self.path.name.clone());
            return Err(objects::Error::Conflict { resource, name, message }.into());
        }
        remove(meta, "resourceVersion");
        let value = self.to_stored(value);
        let created = self.api.objects.create(self.stored, self.namespace(), value, options).await?;
        self.object(StatusCode::CREATED, &created)
    }

    /// DeleteOptions of the body and the query.
    fn delete_options(&self, bytes: &Bytes) -> Result<(DeleteOptions, bool), Refusal> {
        if bytes.is_empty() {
            return self.delete_options_of(&Value::Null);
        }
        let schema = schema::lookup("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
            .ok_or_else(|| Refusal::internal("DeleteOptions have no schema"))?;
        let encoding = negotiate::body_encoding(&self.headers)?;
        let body = if encoding == Encoding::Protobuf {
            let envelope = proto::open(bytes).map_err(|e| Refusal::bad_request(e.to_string()))?;
            proto::decode(envelope.raw, schema).map_err(|e| Refusal::bad_request(e.to_string()))?
        } else {
            body::fit(body::parse(bytes, encoding)?.value, schema, FieldValidation::Ignore)?.0
        };
        self.delete_options_of(&body)
    }

    /// DeleteOptions of a tree, completed by the query.
    pub fn delete_options_of(&self, body: &Value) -> Result<(DeleteOptions, bool), Refusal> {
        let number = |text: &str| text.parse::<i64>().ok();
        let grace_seconds = body["gracePeriodSeconds"]
            .as_i64()
            .or_else(|| self.query.filled("gracePeriodSeconds").and_then(number));
        let policy = body["propagationPolicy"].as_str().or_else(|| self.query.filled("propagationPolicy"));
        let orphan = body["orphanDependents"]
            .as_bool()
            .or_else(|| self.query.filled("orphanDependents").map(|_| self.query.flag("orphanDependents")));
        let refuse = |error: FieldError| -> Refusal {
            let kind = "DeleteOptions.meta.k8s.io".to_owned();
            objects::Error::Invalid { kind, name: String::new(), errors: vec![error] }.into()
        };
        let propagation = match (policy, orphan) {
            (Some(_), Some(_)) => {
                return Err(refuse(FieldError::invalid(
                    "propagationPolicy",
                    policy.unwrap_or_default(),
                    "orphanDependents and deletionPropagation cannot be both set",
                )));
            }
            (Some("Background"), None) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), None) => Some(Propagation::Foreground),
            (Some("Orphan"), None) | (None, Some(true)) => Some(Propagation::Orphan),
            (None, None) => None,
            (Some(other), None) => {
                return Err(refuse(FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan"],
                )));
            }
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let dry_run = body["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
        if dry_run.iter().any(|value| value != "All") {
            return Err(refuse(FieldError::not_supported("dryRun", body["dryRun"].clone(), &["All"])));
        }
        let dry_run = !dry_run.is_empty();
        let options = DeleteOptions {
            grace_seconds,
            propagation,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
        };
        Ok((options, dry_run))
    }

    /// A kind that is answered and not stored.
    async fn answer(&mut self, value: Value, options: &WriteOptions) -> Result<Reply, Refusal> {
        if self.kind.kind == "Binding" {
            let pod = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            return self.bind_to(&pod, &value, options).await;
        }
        if negotiate::resource(&self.headers, true, false)?.shape == Shape::Table {
            return Err(Refusal::NotAcceptable(negotiate::RESOURCE_TYPES));
        }
        self.review(value)
    }

    async fn delete(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let mut options = self.write_options()?;
        let (delete, dry_run) = self.delete_options(bytes)?;
        options.dry_run |= dry_run;
        let name = &self.path.name;
        let removal = self.api.objects.remove(self.stored, self.namespace(), name, &delete, &options).await?;
        if removal.gone && !self.stored.returns_deleted() {
            let status = status::deleted(&self.stored.resource(), name, &removal.object.meta.uid);
            return self.value(StatusCode::OK, &status);
        }
        let accepted = !removal.gone && delete.propagation == Some(Propagation::Background);
        self.object(if accepted { StatusCode::ACCEPTED } else { StatusCode::OK }, &removal.object)
    }

    async fn delete_collection(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let mut options = self.write_options()?;
        let (delete, dry_run) = self.delete_options(bytes)?;
        options.dry_run |= dry_run;
        let filter = self.filter()?;
        let listing = self.api.objects.list(self.stored, filter.namespace());
        let mut deleted = Vec::new();
        for object in listing.items.into_iter().filter(|o| filter.matches(o)) {
            let key = &object.key;
            match self.api.objects.remove(self.stored, &key.namespace, &key.name, &delete, &options).await {
                Ok(removal) => deleted.push(removal.object),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let metadata = json!({"resourceVersion": listing.revision.to_string()});
        let renderer = self.renderer(Accepted::JSON)?;
        let value = renderer.list_tree(&metadata, &deleted);
        self.value(StatusCode::OK, &value)
    }
}
