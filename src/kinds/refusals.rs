//! What every kind refuses, in upstream's words (`pkg/apis/*/validation`): a good object of each kind with
//! one wrong value at a time.

use serde_json::{Value, json};

use super::{ErrorList, registry};

/// A good object of every kind that is checked here, as a client writes it.
fn good(resource: &str) -> Value {
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let job = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let workload = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    let spec = |spec: Value| json!({"spec": spec});
    let mut object = match resource {
        "pods" => spec(json!({"containers": [{"name": "c", "image": "i"}]})),
        "services" => spec(json!({"ports": [{"port": 80}]})),
        "deployments.apps" | "replicasets.apps" | "daemonsets.apps" => spec(workload),
        "statefulsets.apps" => {
            let mut set = workload;
            set["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": claim}]);
            spec(set)
        }
        "replicationcontrollers" => spec(json!({"selector": {"a": "b"}, "template": template})),
        "jobs.batch" => spec(job),
        "cronjobs.batch" => spec(json!({"schedule": "* * * * *", "jobTemplate": {"spec": job}})),
        "persistentvolumes" => spec(json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/data"}})),
        "persistentvolumeclaims" => spec(claim),
        "ingresses.networking.k8s.io" => spec(json!({"rules": [{"host": "a.b", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]})),
        "ingressclasses.networking.k8s.io" => spec(json!({"controller": "a.b/c"})),
        "networkpolicies.networking.k8s.io" => {
            spec(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}],
            "ports": [{"port": 80}]}]}))
        }
        "servicecidrs.networking.k8s.io" => spec(json!({"cidrs": ["10.0.0.0/16"]})),
        "ipaddresses.networking.k8s.io" => spec(json!({"parentRef": {"resource": "services", "name": "s"}})),
        "horizontalpodautoscalers.autoscaling" => spec(json!({"maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}})),
        "poddisruptionbudgets.policy" => spec(json!({"minAvailable": 1, "selector": {}})),
        "resourcequotas" => spec(json!({"hard": {"pods": "1"}})),
        "limitranges" => spec(json!({"limits": [{"type": "Container", "max": {"cpu": "1"}}]})),
        "roles.rbac.authorization.k8s.io" | "clusterroles.rbac.authorization.k8s.io" => {
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})
        }
        "rolebindings.rbac.authorization.k8s.io" => json!({"roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}]}),
        "clusterrolebindings.rbac.authorization.k8s.io" => {
            json!({"roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "u", "namespace": "n"}]})
        }
        "leases.coordination.k8s.io" => spec(json!({"holderIdentity": "h", "leaseDurationSeconds": 1})),
        "priorityclasses.scheduling.k8s.io" => json!({"value": 1}),
        "runtimeclasses.node.k8s.io" => json!({"handler": "h"}),
        "csidrivers.storage.k8s.io" => spec(json!({})),
        "csinodes.storage.k8s.io" => spec(json!({"drivers": [{"name": "d.io", "nodeID": "n"}]})),
        "csistoragecapacities.storage.k8s.io" => json!({"storageClassName": "c"}),
        "storageclasses.storage.k8s.io" => json!({"provisioner": "p.io/x"}),
        "volumeattributesclasses.storage.k8s.io" => json!({"driverName": "d.io", "parameters": {"a": "b"}}),
        "volumeattachments.storage.k8s.io" => spec(json!({"attacher": "d.io", "nodeName": "n",
            "source": {"persistentVolumeName": "v"}})),
        "endpointslices.discovery.k8s.io" => json!({"addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"name": "p", "port": 80}]}),
        "endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        "nodes" | "namespaces" | "serviceaccounts" | "secrets" | "configmaps" => json!({}),
        "controllerrevisions.apps" => json!({"data": {}, "revision": 1}),
        other => panic!("{other} has no good object"),
    };
    let row = registry::by_resource(resource).unwrap_or_else(|| panic!("{resource} has no row"));
    let name = if resource == "ipaddresses.networking.k8s.io" { "10.0.0.1" } else { "x" };
    object["metadata"] = json!({"name": name, "uid": "u-1"});
    if row.namespaced {
        object["metadata"]["namespace"] = "n".into();
    }
    object
}

/// Puts a value at a JSON pointer, making what is missing on the way.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    let parts: Vec<String> = pointer[1..].split('/').map(|part| part.replace("~1", "/")).collect();
    for part in &parts {
        at = match part.parse::<usize>() {
            Ok(index) => {
                if !at.is_array() {
                    *at = json!([]);
                }
                let list = at.as_array_mut().expect("made above");
                list.resize(list.len().max(index + 1), Value::Null);
                &mut list[index]
            }
            Err(_) => &mut at[part.as_str()],
        };
    }
    *at = value;
}

/// The object as it is validated: defaulted, prepared for its creation.
fn prepared(resource: &str, mut object: Value) -> Value {
    let strategy = &registry::by_resource(resource).expect("a row").strategy;
    (strategy.default)(&mut object);
    (strategy.prepare_create)(&mut object);
    (strategy.default)(&mut object);
    object
}

fn texts(errors: &ErrorList) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// The errors of a good object with these values put in.
fn errors(resource: &str, changes: &[(&str, Value)]) -> Vec<String> {
    let mut object = good(resource);
    for (pointer, value) in changes {
        put(&mut object, pointer, value.clone());
    }
    let object = prepared(resource, object);
    texts(&(registry::by_resource(resource).expect("a row").strategy.validate)(&object))
}

/// The errors of changing a good object.
fn change_errors(resource: &str, changes: &[(&str, Value)]) -> Vec<String> {
    let strategy = &registry::by_resource(resource).expect("a row").strategy;
    let mut old = prepared(resource, good(resource));
    old["metadata"]["resourceVersion"] = "1".into();
    let mut new = old.clone();
    for (pointer, value) in changes {
        put(&mut new, pointer, value.clone());
    }
    (strategy.default)(&mut new);
    (strategy.prepare_update)(&mut new, &old);
    texts(&(strategy.validate_update)(&new, &old))
}

/// Checks all cases and tells of all that differ at once.
fn check(found: impl Fn(&str, &[(&str, Value)]) -> Vec<String>, cases: &[(&str, &str, Value, &[&str])]) {
    let mut wrong = Vec::new();
    for (resource, pointer, value, expected) in cases {
        let got = found(resource, &[(pointer, value.clone())]);
        if got != *expected {
            wrong.push(format!("{resource} {pointer} {value}\n  got  {got:#?}\n  want {expected:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

#[test]
fn what_is_good_is_taken() {
    for resource in [
        "pods",
        "services",
        "deployments.apps",
        "replicasets.apps",
        "daemonsets.apps",
        "statefulsets.apps",
        "replicationcontrollers",
        "jobs.batch",
        "cronjobs.batch",
        "persistentvolumes",
        "persistentvolumeclaims",
        "ingresses.networking.k8s.io",
        "ingressclasses.networking.k8s.io",
        "networkpolicies.networking.k8s.io",
        "servicecidrs.networking.k8s.io",
        "ipaddresses.networking.k8s.io",
        "horizontalpodautoscalers.autoscaling",
        "poddisruptionbudgets.policy",
        "resourcequotas",
        "limitranges",
        "roles.rbac.authorization.k8s.io",
        "clusterroles.rbac.authorization.k8s.io",
        "rolebindings.rbac.authorization.k8s.io",
        "clusterrolebindings.rbac.authorization.k8s.io",
        "leases.coordination.k8s.io",
        "priorityclasses.scheduling.k8s.io",
        "runtimeclasses.node.k8s.io",
        "csidrivers.storage.k8s.io",
        "csinodes.storage.k8s.io",
        "csistoragecapacities.storage.k8s.io",
        "storageclasses.storage.k8s.io",
        "volumeattributesclasses.storage.k8s.io",
        "volumeattachments.storage.k8s.io",
        "endpointslices.discovery.k8s.io",
        "endpoints",
        "nodes",
        "namespaces",
        "serviceaccounts",
        "secrets",
        "configmaps",
        "controllerrevisions.apps",
    ] {
        assert_eq!(errors(resource, &[]), Vec::<String>::new(), "{resource}");
        assert_eq!(change_errors(resource, &[]), Vec::<String>::new(), "{resource}");
    }
}

#[test]
fn volumes_are_refused_in_upstreams_words() {
    let volume = |source: Value| {
        let mut volume = source;
        volume["name"] = "v".into();
        json!([volume])
    };
    let cases: &[(Value, &[&str])] = &[
        (
            json!({"emptyDir": {}, "secret": {"secretName": "s"}}),
            &["secret: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            json!({"emptyDir": {}, "cephfs": {"monitors": ["m"]}}),
            &["cephFS: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            json!({"emptyDir": {}, "downwardAPI": {}}),
            &["downwarAPI: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            json!({"emptyDir": {"sizeLimit": "-1"}}),
            &["emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity"],
        ),
        (json!({"hostPath": {"path": ""}}), &["hostPath.path: Required value"]),
        (
            json!({"hostPath": {"path": "/a/../b"}}),
            &["hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
        ),
        (
            json!({"hostPath": {"path": "/a", "type": "Pipe"}}),
            &[
                "hostPath.type: Unsupported value: \"Pipe\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
            ],
        ),
        (
            json!({"gitRepo": {"repository": "", "directory": "/x"}}),
            &[
                "gitRepo.repository: Required value",
                "gitRepo.directory: Invalid value: \"/x\": must be a relative path",
            ],
        ),
        (
            json!({"gcePersistentDisk": {"pdName": "p", "partition": 256}}),
            &["gcePersistentDisk.partition: Invalid value: 256: must be between 1 and 255, inclusive"],
        ),
        (
            json!({"secret": {"secretName": "s", "defaultMode": 512}}),
            &[
                "secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
            ],
        ),
        (
            json!({"secret": {"secretName": "s", "items": [{"key": "", "path": "../x"}]}}),
            &[
                "secret.items[0].key: Required value",
                "secret.items[0].path: Invalid value: \"../x\": must not contain '..'",
            ],
        ),
        (
            json!({"configMap": {"name": "s", "items": [{"key": "k", "path": "..x", "mode": -1}]}}),
            &[
                "configMap.items[0].path: Invalid value: \"..x\": must not start with '..'",
                "configMap.items[0].mode: Invalid value: -1: must be a number between 0 and 0777 (octal), both inclusive",
            ],
        ),
        (
            json!({"nfs": {"server": "", "path": "x"}}),
            &["nfs.server: Required value", "nfs.path: Invalid value: \"x\": must be an absolute path"],
        ),
        (
            json!({"iscsi": {"targetPortal": "t", "iqn": "x", "lun": 0}}),
            &["iscsi.iqn: Invalid value: \"x\": must be valid format starting with iqn, eui, or naa"],
        ),
        (
            json!({"iscsi": {"targetPortal": "t", "iqn": "iqn.x", "lun": 256, "chapAuthSession": true}}),
            &[
                "iscsi.iqn: Invalid value: \"iqn.x\": must be valid format",
                "iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
                "iscsi.secretRef: Required value",
            ],
        ),
        (
            json!({"iscsi": {"targetPortal": "t".repeat(63), "iqn": "iqn.2015-02.example.com:test", "lun": 0, "initiatorName": "eui.0123456789ABCDEF"}}),
            &[
                "name: Invalid value: \"v\": Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
            ],
        ),
        (
            json!({"glusterfs": {"endpoints": "", "path": ""}}),
            &["glusterfs.endpoints: Required value", "glusterfs.path: Required value"],
        ),
        (
            json!({"flocker": {}}),
            &["flocker: Required value: one of datasetName and datasetUUID is required"],
        ),
        (
            json!({"flocker": {"datasetName": "a/b"}}),
            &["flocker.datasetName: Invalid value: \"a/b\": must not contain '/'"],
        ),
        (
            json!({"persistentVolumeClaim": {"claimName": ""}}),
            &["persistentVolumeClaim.claimName: Required value"],
        ),
        (
            json!({"rbd": {"monitors": [], "image": ""}}),
            &["rbd.monitors: Required value", "rbd.image: Required value"],
        ),
        (json!({"cinder": {"volumeID": "v", "secretRef": {}}}), &["cinder.secretRef.name: Required value"]),
        (
            json!({"quobyte": {"registry": "host", "volume": ""}}),
            &[
                "quobyte.registry: Invalid value: \"host\": must be a host:port pair or multiple pairs separated by commas",
                "quobyte.volume: Required value",
            ],
        ),
        (
            json!({"downwardAPI": {"items": [{"path": "p"}]}}),
            &["downwardAPI: Required value: one of fieldRef and resourceFieldRef is required"],
        ),
        (
            json!({"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "status.podIP"}}]}}),
            &[
                "downwardAPI.fieldRef.fieldPath: Unsupported value: \"status.podIP\": supported values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \"metadata.uid\"",
            ],
        ),
        (
            json!({"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}}),
            &["downwardAPI.resourceFieldRef.containerName: Required value"],
        ),
        (
            json!({"fc": {}}),
            &["fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both"],
        ),
        (
            json!({"fc": {"targetWWNs": ["w"]}}),
            &["fc.lun: Required value: lun is required if targetWWNs is specified"],
        ),
        (
            json!({"flexVolume": {"driver": "d", "options": {"kubernetes.io/x": "y"}}}),
            &[
                "flexVolume.options[kubernetes.io/x]: Invalid value: \"kubernetes.io/x\": kubernetes.io and k8s.io namespaces are reserved",
            ],
        ),
        (
            json!({"azureFile": {"secretName": "", "shareName": ""}}),
            &["azureFile.secretName: Required value", "azureFile.shareName: Required value"],
        ),
        (
            json!({"azureDisk": {"diskName": "d", "diskURI": "x", "kind": "Managed", "cachingMode": "Some"}}),
            &[
                "azureDisk.cachingMode: Unsupported value: \"Some\": supported values: \"None\", \"ReadOnly\", \"ReadWrite\"",
                "azureDisk.diskURI: Unsupported value: \"x\": supported values: \"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}\"",
            ],
        ),
        (json!({"vsphereVolume": {"volumePath": ""}}), &["vsphereVolume.volumePath: Required value"]),
        (json!({"portworxVolume": {"volumeID": ""}}), &["portworxVolume.volumeID: Required value"]),
        (
            json!({"scaleIO": {"gateway": "", "system": "", "volumeName": "", "secretRef": {}}}),
            &[
                "scaleIO.gateway: Required value",
                "scaleIO.system: Required value",
                "scaleIO.volumeName: Required value",
            ],
        ),
        (
            json!({"storageos": {"volumeName": "v", "secretRef": {}}}),
            &["storageos.secretRef.name: Required value"],
        ),
        (
            json!({"projected": {"sources": [{"secret": {"name": "a", "items": [{"key": "k", "path": "p"}]}}, {"configMap": {"name": "b", "items": [{"key": "k", "path": "p"}]}}]}}),
            &["projected: Invalid value: \"b\": conflicting duplicate paths"],
        ),
        (
            json!({"projected": {"sources": [{"serviceAccountToken": {"path": "p", "expirationSeconds": 599}}]}}),
            &[
                "projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
            ],
        ),
        (
            json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}),
            &[
                "projected.sources[0].clusterTrustBundle: Required value: either name or signerName must be specified",
            ],
        ),
        (
            json!({"projected": {"sources": [{"secret": {"name": "a"}, "configMap": {"name": "b"}}]}}),
            &["projected.sources[0]: Forbidden: may not specify more than 1 volume type per source"],
        ),
        (
            json!({"csi": {"driver": ""}}),
            &["csi.driver: Required value", &format!("csi.driver: Invalid value: \"\": {SUBDOMAIN}")],
        ),
        (json!({"ephemeral": {}}), &["ephemeral.volumeClaimTemplate: Required value"]),
        (
            json!({"image": {"reference": "", "pullPolicy": "Some"}}),
            &[
                "image.reference: Required value",
                "image.pullPolicy: Unsupported value: \"Some\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ],
        ),
    ];
    let mut wrong = Vec::new();
    for (source, expected) in cases {
        let mut pod = good("pods");
        pod["spec"]["serviceAccountName"] = "default".into();
        pod["spec"]["volumes"] = volume(source.clone());
        let pod = prepared("pods", pod);
        let strategy = &registry::by_resource("pods").expect("a row").strategy;
        let got = texts(&(strategy.validate)(&pod));
        let want: Vec<String> = expected.iter().map(|text| format!("spec.volumes[0].{text}")).collect();
        if got != want {
            wrong.push(format!("{source}\n  got  {got:#?}\n  want {want:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn pods_are_refused_in_upstreams_words() {
    const C: &str = "/spec/containers/0";
    let at = |field: &str| format!("{C}/{field}");
    let pointers: Vec<(String, Value, Vec<String>)> = vec![
        (at("name"), json!("A_b"), vec![format!("spec.containers[0].name: Invalid value: \"A_b\": {LABEL}")]),
        (at("imagePullPolicy"), json!("Sometimes"), vec!["spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"".into()]),
        (at("terminationMessagePolicy"), json!("Some"), vec!["spec.containers[0].terminationMessagePolicy: Unsupported value: \"Some\": supported values: \"File\", \"FallbackToLogsOnError\"".into()]),
        (at("ports"), json!([{"containerPort": 0}]), vec!["spec.containers[0].ports[0].containerPort: Required value".into()]),
        (at("ports"), json!([{"containerPort": 80, "protocol": "ICMP"}]), vec!["spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"".into()]),
        (at("ports"), json!([{"containerPort": 80, "hostPort": 1}, {"containerPort": 81, "hostPort": 1}]), vec!["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//1\"".into()]),
        (at("ports"), json!([{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]), vec!["spec.containers[0].ports[1].name: Duplicate value: \"a\"".into()]),
        (at("env"), json!([{"name": ""}]), vec!["spec.containers[0].env[0].name: Required value".into()]),
        (at("env"), json!([{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]), vec!["spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty".into()]),
        (at("env"), json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "s", "key": ""}}}]), vec!["spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Required value".into()]),
        (at("env"), json!([{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "../x", "key": "a b="}}}]), vec!["spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: \"../x\": must not contain '..'".into(), "spec.containers[0].env[0].valueFrom.fileKeyRef.key: Invalid value: \"a b=\": a valid environment variable name must consist only of printable ASCII characters other than '='".into()]),
        (at("env"), json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}]), vec!["spec.containers[0].env[0].valueFrom.resourceFieldRef.resource: Unsupported value: \"limits.gpu\": supported values: \"limits.cpu\", \"limits.ephemeral-storage\", \"limits.memory\", \"requests.cpu\", \"requests.ephemeral-storage\", \"requests.memory\"".into()]),
        (at("env"), json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}]), vec!["spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource".into()]),
        (at("envFrom"), json!([{}]), vec!["spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`".into()]),
        (at("volumeMounts"), json!([{"name": "", "mountPath": ""}]), vec!["spec.containers[0].volumeMounts[0].name: Required value".into(), "spec.containers[0].volumeMounts[0].name: Not found: \"\"".into(), "spec.containers[0].volumeMounts[0].mountPath: Required value".into()]),
        (at("volumeDevices"), json!([{"name": "d", "devicePath": "/../x"}]), vec!["spec.containers[0].volumeDevices[0].name: Not found: \"d\"".into(), "spec.containers[0].volumeDevices[0].devicePath: Invalid value: \"/../x\": can not contain backsteps ('..')".into()]),
        (at("livenessProbe"), json!({"httpGet": {"path": "/", "port": 0, "scheme": "FTP"}}), vec!["spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive".into(), "spec.containers[0].livenessProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"".into()]),
        (at("livenessProbe"), json!({"tcpSocket": {"port": "Web_1"}}), vec!["spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: \"Web_1\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into()]),
        (at("livenessProbe"), json!({"exec": {"command": []}}), vec!["spec.containers[0].livenessProbe.exec.command: Required value".into()]),
        (at("livenessProbe"), json!({"grpc": {"port": 70000}}), vec!["spec.containers[0].livenessProbe.grpc.port: Invalid value: 70000: must be between 1 and 65535, inclusive".into()]),
        (at("livenessProbe"), json!({"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}), vec!["spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type".into()]),
        (at("livenessProbe"), json!({"exec": {"command": ["a"]}, "periodSeconds": -1, "terminationGracePeriodSeconds": 0}), vec!["spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0".into(), "spec.containers[0].livenessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0".into()]),
        (at("readinessProbe"), json!({"exec": {"command": ["a"]}, "terminationGracePeriodSeconds": 5}), vec!["spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes".into()]),
        (at("lifecycle"), json!({"preStop": {"sleep": {"seconds": 31}}}), vec!["spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)".into()]),
        (at("resizePolicy"), json!([{"resourceName": "disk", "restartPolicy": "NotRequired"}]), vec!["spec.containers[0].resizePolicy: Unsupported value: \"disk\": supported values: \"cpu\", \"memory\"".into()]),
        (at("resources"), json!({"claims": [{"name": "x"}]}), vec!["spec.containers[0].resources.claims[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims which is empty".into()]),
        (at("securityContext"), json!({"runAsUser": -1}), vec!["spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive".into()]),
        (at("securityContext"), json!({"privileged": true, "allowPrivilegeEscalation": false}), vec!["spec.containers[0].securityContext: Invalid value: {\"Capabilities\":null,\"Privileged\":true,\"SELinuxOptions\":null,\"WindowsOptions\":null,\"RunAsUser\":null,\"RunAsGroup\":null,\"RunAsNonRoot\":null,\"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\"ProcMount\":null,\"SeccompProfile\":null,\"AppArmorProfile\":null}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true".into()]),
        (at("securityContext"), json!({"procMount": "Unmasked"}), vec!["spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`".into()]),
        (at("securityContext"), json!({"seccompProfile": {"type": "RuntimeDefault", "localhostProfile": "x"}}), vec!["spec.containers[0].securityContext.seccompProfile.localhostProfile: Invalid value: \"x\": can only be set when seccomp type is Localhost".into()]),
        (at("securityContext"), json!({"appArmorProfile": {"type": "Localhost"}}), vec!["spec.containers[0].securityContext.appArmorProfile.localhostProfile: Required value: must be set when AppArmor type is Localhost".into()]),
        ("/spec/terminationGracePeriodSeconds".into(), json!(-1), vec![]),
        ("/spec/activeDeadlineSeconds".into(), json!(0), vec!["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive".into()]),
        ("/spec/dnsPolicy".into(), json!("Some"), vec!["spec.dnsPolicy: Unsupported value: \"Some\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"".into()]),
        ("/spec/dnsPolicy".into(), json!("None"), vec!["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None".into()]),
        ("/spec/dnsConfig".into(), json!({"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}), vec!["spec.dnsConfig.nameservers: Invalid value: [\"1.1.1.1\",\"1.1.1.2\",\"1.1.1.3\",\"1.1.1.4\"]: must not have more than 3 nameservers".into()]),
        ("/spec/dnsConfig".into(), json!({"options": [{"value": "x"}]}), vec!["spec.dnsConfig.options[0]: Required value: must not be empty".into()]),
        ("/spec/hostname".into(), json!("A"), vec![format!("spec.hostname: Invalid value: \"A\": {LABEL}")]),
        ("/spec/hostnameOverride".into(), json!("A"), vec![format!("spec.hostnameOverride: Invalid value: \"A\": {SUBDOMAIN}")]),
        ("/spec/hostnameOverride".into(), json!("a".repeat(65)), vec!["spec.hostnameOverride: Too long: may not be more than 64 bytes".into()]),
        ("/spec/nodeSelector".into(), json!({"a": "b c"}), vec!["spec.nodeSelector: Invalid value: \"b c\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".into()]),
        ("/spec/securityContext".into(), json!({"sysctls": [{"name": "a", "value": "b"}, {"name": "a", "value": "b"}]}), vec!["spec.securityContext.sysctls[1].name: Duplicate value: \"a\"".into()]),
        ("/spec/securityContext".into(), json!({"fsGroupChangePolicy": "Some"}), vec!["spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Some\": supported values: \"Always\", \"OnRootMismatch\"".into()]),
        ("/spec/securityContext".into(), json!({"supplementalGroupsPolicy": "Some"}), vec!["spec.securityContext.supplementalGroupsPolicy: Unsupported value: \"Some\": supported values: \"Merge\", \"Strict\"".into()]),
        ("/spec/tolerations".into(), json!([{"key": "a", "operator": "Exists", "value": "b"}]), vec!["spec.tolerations[0].operator: Invalid value: {\"Key\":\"a\",\"Operator\":\"Exists\",\"Value\":\"b\",\"Effect\":\"\",\"TolerationSeconds\":null}: value must be empty when `operator` is 'Exists'".into()]),
        ("/spec/tolerations".into(), json!([{"key": "a", "operator": "Exists", "effect": "Some"}]), vec!["spec.tolerations[0].effect: Unsupported value: \"Some\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"".into()]),
        ("/spec/tolerations".into(), json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 5}]), vec!["spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set".into()]),
        ("/spec/affinity".into(), json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}), vec!["spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term".into()]),
        ("/spec/affinity".into(), json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "preference": {}}]}}), vec!["spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100".into()]),
        ("/spec/affinity".into(), json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": ""}]}}), vec![
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty".into(),
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: \"\": name part must be non-empty".into(),
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".into(),
        ]),
        ("/spec/topologySpreadConstraints".into(), json!([{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "Never"}]), vec!["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero".into(), "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Never\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"".into()]),
        ("/spec/topologySpreadConstraints".into(), json!([{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 1}]), vec!["spec.topologySpreadConstraints[0].minDomains: Invalid value: 1: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway".into()]),
        ("/spec/schedulingGates".into(), json!([{"name": "a"}, {"name": "a"}]), vec!["spec.schedulingGates[1]: Duplicate value: \"a\"".into()]),
        ("/spec/readinessGates".into(), json!([{"conditionType": "a b"}]), vec!["spec.readinessGates[0].conditionType: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".into()]),
        ("/spec/hostAliases".into(), json!([{"ip": "x"}]), vec!["spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()]),
        ("/spec/os".into(), json!({"name": "plan9"}), vec!["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\"".into()]),
        ("/spec/resources".into(), json!({"limits": {"ephemeral-storage": "1"}}), vec!["spec.resources.limits[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\"".into()]),
        ("/spec/overhead".into(), json!({"x": "1"}), vec!["spec.overhead.limits[x]: Invalid value: \"x\": must be a standard resource type or fully qualified".into(), "spec.overhead.limits[x]: Invalid value: \"x\": must be a standard resource for containers".into()]),
        ("/metadata/annotations".into(), json!({"controller.kubernetes.io/pod-deletion-cost": "x"}), vec!["metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"x\": must be a 32bit integer".into()]),
        ("/spec".into(), json!({"os": {"name": "linux"}, "containers": [{"name": "c", "image": "i", "securityContext": {"windowsOptions": {}}}]}), vec!["spec.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod".into()]),
        ("/spec".into(), json!({"os": {"name": "windows"}, "hostPID": true, "securityContext": {"fsGroup": 1}, "containers": [{"name": "c", "image": "i", "securityContext": {"runAsUser": 1}}]}), vec![
            "spec.hostPID: Forbidden: cannot be set for a windows pod".into(),
            "spec.securityContext.fsGroup: Forbidden: cannot be set for a windows pod".into(),
            "spec.containers[0].securityContext.runAsUser: Forbidden: cannot be set for a windows pod".into(),
        ]),
        ("/metadata/annotations".into(), json!({"kubernetes.io/config.mirror": "x"}), vec!["metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set".into()]),
        ("/metadata/name".into(), json!("A"), vec![format!("metadata.name: Invalid value: \"A\": {SUBDOMAIN}")]),
        ("/metadata/labels".into(), json!({"a b": "c"}), vec!["metadata.labels: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".into()]),
        ("/metadata/finalizers".into(), json!(["x"]), vec!["metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified".into()]),
    ];
    let mut wrong = Vec::new();
    for (pointer, value, expected) in &pointers {
        let got = errors("pods", &[(pointer, value.clone())]);
        if got != *expected {
            wrong.push(format!("{pointer} {value}\n  got  {got:#?}\n  want {expected:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), pointers.len(), wrong.join("\n"));
}

#[test]
fn workloads_are_refused_in_upstreams_words() {
    check(
        errors,
        &[
            (
                "deployments.apps",
                "/spec/replicas",
                json!(-1),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "deployments.apps",
                "/spec/selector",
                Value::Null,
                &[
                    "spec.selector: Required value",
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                "deployments.apps",
                "/spec/selector",
                json!({}),
                &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                "deployments.apps",
                "/spec/template/metadata/labels/a",
                json!("c"),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                "deployments.apps",
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                &[
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                ],
            ),
            (
                "deployments.apps",
                "/spec/template/spec/activeDeadlineSeconds",
                json!(5),
                &[
                    "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported",
                ],
            ),
            (
                "deployments.apps",
                "/spec/strategy",
                json!({"type": "Some"}),
                &[
                    "spec.strategy: Unsupported value: {\"Type\":\"Some\",\"RollingUpdate\":null}: supported values: \"Recreate\", \"RollingUpdate\"",
                ],
            ),
            (
                "deployments.apps",
                "/spec/strategy",
                json!({"type": "Recreate", "rollingUpdate": {}}),
                &[
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                ],
            ),
            (
                "deployments.apps",
                "/spec/strategy/rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": "0%"}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                "deployments.apps",
                "/spec/strategy/rollingUpdate",
                json!({"maxUnavailable": "101%"}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
                ],
            ),
            (
                "deployments.apps",
                "/spec/strategy/rollingUpdate",
                json!({"maxSurge": "x"}),
                &[
                    "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ],
            ),
            (
                "deployments.apps",
                "/spec/progressDeadlineSeconds",
                json!(0),
                &["spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds"],
            ),
            (
                "deployments.apps",
                "/spec/revisionHistoryLimit",
                json!(-1),
                &["spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "replicasets.apps",
                "/spec/replicas",
                json!(-1),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "replicasets.apps",
                "/spec/minReadySeconds",
                json!(-1),
                &["spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "replicationcontrollers",
                "/spec/selector",
                json!({"a": "c"}),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                "daemonsets.apps",
                "/spec/updateStrategy",
                json!({"type": "Some"}),
                &[
                    "spec.updateStrategy: Unsupported value: {\"Type\":\"Some\",\"RollingUpdate\":null}: supported values: \"RollingUpdate\", \"OnDelete\"",
                ],
            ),
            (
                "daemonsets.apps",
                "/spec/updateStrategy/rollingUpdate",
                json!({"maxSurge": 1, "maxUnavailable": 1}),
                &[
                    "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
                ],
            ),
            (
                "daemonsets.apps",
                "/spec/updateStrategy/rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": 0}),
                &[
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
                ],
            ),
            (
                "statefulsets.apps",
                "/spec/podManagementPolicy",
                json!("Some"),
                &["spec.podManagementPolicy: Invalid value: \"Some\": must be 'OrderedReady' or 'Parallel'"],
            ),
            (
                "statefulsets.apps",
                "/spec/updateStrategy",
                json!({"type": "OnDelete", "rollingUpdate": {"partition": 1}}),
                &[
                    "spec.updateStrategy.rollingUpdate: Invalid value: {\"Partition\":1,\"MaxUnavailable\":null}: only allowed for updateStrategy 'RollingUpdate'",
                ],
            ),
            (
                "statefulsets.apps",
                "/spec/updateStrategy/rollingUpdate/partition",
                json!(-1),
                &[
                    "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
            (
                "statefulsets.apps",
                "/spec/persistentVolumeClaimRetentionPolicy",
                json!({"whenDeleted": "Some"}),
                &[
                    "spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: \"Some\": supported values: \"Retain\", \"Delete\"",
                ],
            ),
            (
                "statefulsets.apps",
                "/spec/ordinals",
                json!({"start": -1}),
                &["spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "statefulsets.apps",
                "/metadata/name",
                json!("a.b"),
                &["metadata.name: Invalid value: \"a.b\": must not contain dots"],
            ),
            (
                "jobs.batch",
                "/spec/parallelism",
                json!(-1),
                &["spec.parallelism: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "jobs.batch",
                "/spec/template/spec/restartPolicy",
                json!("Always"),
                &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
            ),
            ("jobs.batch", "/spec/completionMode", json!("Indexed"), &[]),
            (
                "jobs.batch",
                "/spec/completionMode",
                json!("Some"),
                &[
                    "spec.completionMode: Unsupported value: \"Some\": supported values: \"NonIndexed\", \"Indexed\"",
                ],
            ),
            (
                "jobs.batch",
                "/spec/backoffLimitPerIndex",
                json!(1),
                &["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
            ),
            (
                "jobs.batch",
                "/spec/maxFailedIndexes",
                json!(1),
                &[
                    "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
                    "spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode",
                ],
            ),
            (
                "jobs.batch",
                "/spec/managedBy",
                json!("x"),
                &[
                    "spec.managedBy: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                ],
            ),
            (
                "jobs.batch",
                "/spec/podReplacementPolicy",
                json!("Some"),
                &[
                    "spec.podReplacementPolicy: Unsupported value: \"Some\": supported values: \"Failed\", \"TerminatingOrFailed\"",
                ],
            ),
            (
                "jobs.batch",
                "/spec/successPolicy",
                json!({"rules": []}),
                &["spec.successPolicy: Invalid value: {\"Rules\":[]}: requires indexed completion mode"],
            ),
            (
                "jobs.batch",
                "/spec/podFailurePolicy",
                json!({"rules": [{"action": "Some"}]}),
                &[
                    "spec.podFailurePolicy.rules[0].action: Unsupported value: \"Some\": supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\"",
                    "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
                ],
            ),
            (
                "jobs.batch",
                "/spec/podFailurePolicy",
                json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [2, 1, 0, 0], "containerName": "z"}}]}),
                &[
                    "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
                    "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"z\": must be one of the container or initContainer names in the pod template",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Invalid value: 0: must not be 0 for the In operator",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[3]: Invalid value: 0: must not be 0 for the In operator",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[3]: Duplicate value: 0",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,1,0,0]: must be ordered",
                ],
            ),
            (
                "jobs.batch",
                "/spec/podFailurePolicy",
                json!({"rules": [{"onPodConditions": [{"type": "A", "status": "Some"}]}]}),
                &[
                    "spec.podFailurePolicy.rules[0].action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
                    "spec.podFailurePolicy.rules[0].onPodConditions[0].status: Unsupported value: \"Some\": supported values: \"False\", \"True\", \"Unknown\"",
                ],
            ),
            ("cronjobs.batch", "/spec/schedule", json!(""), &["spec.schedule: Required value"]),
            (
                "cronjobs.batch",
                "/spec/schedule",
                json!("* * *"),
                &["spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]"],
            ),
            (
                "cronjobs.batch",
                "/spec/schedule",
                json!("TZ=UTC * * * * *"),
                &[
                    "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                ],
            ),
            (
                "cronjobs.batch",
                "/spec/timeZone",
                json!("Local"),
                &[
                    "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
                ],
            ),
            (
                "cronjobs.batch",
                "/spec/timeZone",
                json!("Nowhere/At"),
                &["spec.timeZone: Invalid value: \"Nowhere/At\": unknown time zone Nowhere/At"],
            ),
            (
                "cronjobs.batch",
                "/spec/concurrencyPolicy",
                json!("Some"),
                &[
                    "spec.concurrencyPolicy: Unsupported value: \"Some\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
                ],
            ),
            (
                "cronjobs.batch",
                "/spec/failedJobsHistoryLimit",
                json!(-1),
                &["spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "cronjobs.batch",
                "/metadata/name",
                json!("x".repeat(53)),
                &[&format!(
                    "metadata.name: Invalid value: \"{}\": must be no more than 52 characters",
                    "x".repeat(53)
                )],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/minReplicas",
                json!(0),
                &["spec.minReplicas: Invalid value: 0: must be greater than or equal to 1"],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/maxReplicas",
                json!(0),
                &[
                    "spec.maxReplicas: Invalid value: 0: must be greater than 0",
                    "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                ],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/scaleTargetRef/name",
                json!(""),
                &["spec.scaleTargetRef.name: Required value"],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/metrics",
                json!([{"type": "Resource"}]),
                &[
                    "spec.metrics[0].resource: Required value: must populate information for the given metric source",
                ],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/metrics",
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]),
                &[
                    "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
                ],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/metrics",
                json!([{"type": "Pods", "pods": {"metric": {"name": ""}, "target": {"type": "Some", "averageValue": "0"}}}]),
                &[
                    "spec.metrics[0].pods.metric.name: Required value: must specify a metric name",
                    "spec.metrics[0].pods.target.type: Invalid value: \"Some\": must be either Utilization, Value, or AverageValue",
                    "spec.metrics[0].pods.target.averageValue: Invalid value: \"0\": must be positive",
                ],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/metrics",
                json!([{"type": "External", "external": {"metric": {"name": "m"}, "target": {"type": "Value", "value": "1", "averageValue": "1"}}}]),
                &[
                    "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
                ],
            ),
            (
                "horizontalpodautoscalers.autoscaling",
                "/spec/behavior",
                json!({"scaleDown": {"stabilizationWindowSeconds": 3601, "policies": [{"type": "Some", "value": 0, "periodSeconds": 1801}]}}),
                &[
                    "spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
                    "spec.behavior.scaleDown.policies[0].type: Unsupported value: \"Some\": supported values: \"Percent\", \"Pods\"",
                    "spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
                    "spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
                ],
            ),
            (
                "poddisruptionbudgets.policy",
                "/spec/minAvailable",
                json!("101%"),
                &["spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"],
            ),
            (
                "poddisruptionbudgets.policy",
                "/spec/unhealthyPodEvictionPolicy",
                json!("Some"),
                &[
                    "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Some\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
                ],
            ),
            (
                "controllerrevisions.apps",
                "/revision",
                json!(-1),
                &["revision: Invalid value: -1: must be greater than or equal to 0"],
            ),
        ],
    );
    let indexed = |policy: Value| {
        errors(
            "jobs.batch",
            &[
                ("/spec/completionMode", json!("Indexed")),
                ("/spec/completions", json!(5)),
                ("/spec/successPolicy", policy),
            ],
        )
    };
    for (rule, text) in [
        (
            json!({}),
            "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
        ),
        (
            json!({"succeededCount": 6}),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 6: must be less than or equal to 5 (the number of specified completions)",
        ),
        (
            json!({"succeededIndexes": "0,2-3", "succeededCount": 4}),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)",
        ),
        (
            json!({"succeededIndexes": "3-1"}),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"3-1\": error parsing succeededIndexes: non-increasing order, previous: 3, current: 1",
        ),
        (
            json!({"succeededIndexes": "9"}),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"9\": error parsing succeededIndexes: too large index: \"9\"",
        ),
        (
            json!({"succeededIndexes": "a"}),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"a\": error parsing succeededIndexes: cannot convert string to integer for index: \"a\"",
        ),
    ] {
        assert_eq!(indexed(json!({"rules": [rule]})), [text]);
    }
    assert_eq!(
        indexed(json!({"rules": [{"succeededIndexes": "0,2-4", "succeededCount": 4}]})),
        Vec::<String>::new()
    );
}

#[test]
fn network_objects_are_refused_in_upstreams_words() {
    const PATH: &str = "/spec/rules/0/http/paths/0";
    let path = |field: &str| format!("{PATH}/{field}");
    let (kind, text, backend) = (path("pathType"), path("path"), path("backend"));
    check(
        errors,
        &[
            ("services", "/spec/ports", json!([]), &["spec.ports: Required value"]),
            (
                "services",
                "/spec/ports/0/port",
                json!(0),
                &[
                    "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                "services",
                "/spec/ports/0/protocol",
                json!("ICMP"),
                &[
                    "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                ],
            ),
            (
                "services",
                "/spec/ports/0/nodePort",
                json!(30000),
                &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                "services",
                "/spec/ports/1",
                json!({"port": 81}),
                &["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
            ),
            (
                "services",
                "/spec/type",
                json!("Some"),
                &[
                    "spec.type: Unsupported value: \"Some\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                "services",
                "/spec/sessionAffinity",
                json!("Some"),
                &[
                    "spec.sessionAffinity: Unsupported value: \"Some\": supported values: \"ClientIP\", \"None\"",
                ],
            ),
            (
                "services",
                "/spec/externalTrafficPolicy",
                json!("Local"),
                &[
                    "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
                ],
            ),
            (
                "services",
                "/spec/internalTrafficPolicy",
                json!("Some"),
                &[
                    "spec.internalTrafficPolicy: Unsupported value: \"Some\": supported values: \"Cluster\", \"Local\"",
                ],
            ),
            (
                "services",
                "/spec/loadBalancerClass",
                json!("a.b/c"),
                &["spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"],
            ),
            (
                "services",
                "/spec/loadBalancerSourceRanges",
                json!(["10.0.0.0/8"]),
                &["spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"],
            ),
            (
                "services",
                "/spec/externalIPs",
                json!(["127.0.0.1"]),
                &[
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                ],
            ),
            (
                "services",
                "/spec/selector",
                json!({"a b": "c"}),
                &[
                    "spec.selector: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                ],
            ),
            (
                "services",
                "/spec/clusterIP",
                json!("x"),
                &[
                    "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                "services",
                "/spec/trafficDistribution",
                json!("Some"),
                &[
                    "spec.trafficDistribution: Unsupported value: \"Some\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
                ],
            ),
            (
                "services",
                "/metadata/name",
                json!("1-"),
                &[
                    "metadata.name: Invalid value: \"1-\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                "ingresses.networking.k8s.io",
                "/spec/rules",
                json!([]),
                &["spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"],
            ),
            (
                "ingresses.networking.k8s.io",
                "/spec/rules/0/host",
                json!("10.0.0.1"),
                &["spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"],
            ),
            (
                "ingresses.networking.k8s.io",
                "/spec/rules/0/http/paths",
                json!([]),
                &["spec.rules[0].http.paths: Required value"],
            ),
            (
                "ingresses.networking.k8s.io",
                &kind,
                Value::Null,
                &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
            ),
            (
                "ingresses.networking.k8s.io",
                &kind,
                json!("Some"),
                &[
                    "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Some\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\"",
                ],
            ),
            (
                "ingresses.networking.k8s.io",
                &text,
                json!("x//y"),
                &[
                    "spec.rules[0].http.paths[0].path: Invalid value: \"x//y\": must be an absolute path",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"x//y\": must not contain '//'",
                ],
            ),
            (
                "ingresses.networking.k8s.io",
                &text,
                json!("/x/.."),
                &["spec.rules[0].http.paths[0].path: Invalid value: \"/x/..\": cannot end with '/..'"],
            ),
            (
                "ingresses.networking.k8s.io",
                &backend,
                json!({}),
                &[
                    "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
                ],
            ),
            (
                "ingresses.networking.k8s.io",
                &backend,
                json!({"service": {"name": "s", "port": {}}}),
                &["spec.rules[0].http.paths[0].backend: Required value: port name or number is required"],
            ),
            (
                "ingresses.networking.k8s.io",
                &backend,
                json!({"service": {"name": "s", "port": {"name": "a", "number": 1}}}),
                &[
                    "spec.rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number",
                ],
            ),
            (
                "ingresses.networking.k8s.io",
                &backend,
                json!({"resource": {"kind": "", "name": "a/b"}}),
                &[
                    "spec.rules[0].http.paths[0].backend.resource.kind: Required value",
                    "spec.rules[0].http.paths[0].backend.resource.name: Invalid value: \"a/b\": may not contain '/'",
                ],
            ),
            (
                "ingresses.networking.k8s.io",
                "/spec/tls",
                json!([{"hosts": ["A"], "secretName": "B"}]),
                &[
                    &format!("spec.tls[0].hosts[0]: Invalid value: \"A\": {SUBDOMAIN}"),
                    &format!("spec.tls[0].secretName: Invalid value: \"B\": {SUBDOMAIN}"),
                ],
            ),
            (
                "ingressclasses.networking.k8s.io",
                "/spec/controller",
                json!("a"),
                &[
                    "spec.controller: Invalid value: \"a\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                ],
            ),
            (
                "ingressclasses.networking.k8s.io",
                "/spec/controller",
                json!("a.b/c d"),
                &[
                    "spec.controller: Invalid value: \"c d\": Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
                ],
            ),
            (
                "ingressclasses.networking.k8s.io",
                "/spec/parameters",
                json!({"kind": "K", "name": "n", "scope": "Namespace"}),
                &["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"],
            ),
            (
                "ingressclasses.networking.k8s.io",
                "/spec/parameters",
                json!({"kind": "K", "name": "n", "namespace": "x"}),
                &["spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"],
            ),
            (
                "networkpolicies.networking.k8s.io",
                "/spec/ingress/0/from/0",
                json!({}),
                &["spec.ingress[0].from[0]: Required value: must specify a peer"],
            ),
            (
                "networkpolicies.networking.k8s.io",
                "/spec/ingress/0/from/0",
                json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
                &["spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer"],
            ),
            (
                "networkpolicies.networking.k8s.io",
                "/spec/ingress/0/from/0",
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                ],
            ),
            (
                "networkpolicies.networking.k8s.io",
                "/spec/ingress/0/ports/0",
                json!({"endPort": 5}),
                &[
                    "spec.ingress[0].ports[0].port: Required value: must be specified if `endPort` is specified",
                ],
            ),
            (
                "networkpolicies.networking.k8s.io",
                "/spec/ingress/0/ports/0",
                json!({"port": 80, "endPort": 5}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 5: must be greater than or equal to `port`",
                ],
            ),
            (
                "networkpolicies.networking.k8s.io",
                "/spec/policyTypes",
                json!(["Some"]),
                &[
                    "spec.policyTypes[0]: Unsupported value: \"Some\": supported values: \"Egress\", \"Ingress\"",
                ],
            ),
            (
                "servicecidrs.networking.k8s.io",
                "/spec/cidrs",
                json!([]),
                &["spec.cidrs: Required value: at least one CIDR required"],
            ),
            (
                "servicecidrs.networking.k8s.io",
                "/spec/cidrs",
                json!(["10.0.0.0/16", "10.1.0.0/16"]),
                &[
                    "spec.cidrs: Invalid value: [\"10.0.0.0/16\",\"10.1.0.0/16\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                ],
            ),
            (
                "ipaddresses.networking.k8s.io",
                "/spec/parentRef",
                Value::Null,
                &["spec.parentRef: Required value"],
            ),
            (
                "ipaddresses.networking.k8s.io",
                "/spec/parentRef/resource",
                json!("a/b"),
                &["spec.parentRef.resource: Invalid value: \"a/b\": may not contain '/'"],
            ),
            (
                "endpointslices.discovery.k8s.io",
                "/addressType",
                json!("Some"),
                &["addressType: Unsupported value: \"Some\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""],
            ),
            (
                "endpointslices.discovery.k8s.io",
                "/endpoints/0/addresses",
                json!([]),
                &["endpoints[0].addresses: Required value: must contain at least 1 address"],
            ),
            (
                "endpointslices.discovery.k8s.io",
                "/endpoints/0/hints",
                json!({"forZones": [{"name": "a"}, {"name": "a"}]}),
                &["endpoints[0].hints.forZones[1].name: Duplicate value: \"a\""],
            ),
            (
                "endpointslices.discovery.k8s.io",
                "/ports/1",
                json!({"name": "p", "port": 81}),
                &["ports[1].name: Duplicate value: \"p\""],
            ),
            (
                "endpoints",
                "/subsets/0/addresses",
                json!([]),
                &["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
            ),
            (
                "endpoints",
                "/subsets/0/ports/0/port",
                json!(0),
                &["subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
        ],
    );
    assert_eq!(
        errors("services", &[("/spec/type", json!("LoadBalancer")), ("/spec/ports/0/port", json!(10250))]),
        [
            "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet"
        ]
    );
    assert_eq!(
        errors(
            "ingresses.networking.k8s.io",
            &[
                ("/spec/ingressClassName", json!("a")),
                ("/metadata/annotations", json!({"kubernetes.io/ingress.class": "b"}))
            ]
        ),
        [
            "annotations.kubernetes.io/ingress.class: Invalid value: \"b\": must match `ingressClassName` when both are specified"
        ]
    );
}

#[test]
fn storage_objects_are_refused_in_upstreams_words() {
    let source = |kind: &str, source: Value| {
        errors("persistentvolumes", &[("/spec/hostPath", Value::Null), (&format!("/spec/{kind}"), source)])
    };
    for (kind, value, expected) in [
        (
            "csi",
            json!({"driver": "d.io", "volumeHandle": "", "nodePublishSecretRef": {"name": "s"}}),
            vec![
                "spec.csi.volumeHandle: Required value",
                "spec.csi.nodePublishSecretRef.namespace: Required value",
            ],
        ),
        (
            "local",
            json!({"path": "/x"}),
            vec!["spec.nodeAffinity: Required value: Local volume requires node affinity"],
        ),
        (
            "azureFile",
            json!({"secretName": "s", "shareName": "t", "secretNamespace": ""}),
            vec!["spec.azureFile.secretNamespace: Required value"],
        ),
        ("gcePersistentDisk", json!({"pdName": ""}), vec!["spec.persistentDisk.pdName: Required value"]),
        (
            "glusterfs",
            json!({"endpoints": "e", "path": "p", "endpointsNamespace": ""}),
            vec![
                "spec.glusterfs.endpointsNamespace: Invalid value: \"\": if the endpointnamespace is set, it must be a valid namespace name",
            ],
        ),
        (
            "cinder",
            json!({"volumeID": "v", "secretRef": {"name": "s"}}),
            vec!["spec.cinder.secretRef.namespace: Required value"],
        ),
    ] {
        assert_eq!(source(kind, value), expected, "{kind}");
    }
    check(
        errors,
        &[
            ("persistentvolumes", "/spec/accessModes", json!([]), &["spec.accessModes: Required value"]),
            (
                "persistentvolumes",
                "/spec/accessModes",
                json!(["Some"]),
                &[
                    "spec.accessModes: Unsupported value: \"Some\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                ],
            ),
            (
                "persistentvolumes",
                "/spec/accessModes",
                json!(["ReadWriteOnce", "ReadWriteOncePod"]),
                &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
            ),
            (
                "persistentvolumes",
                "/spec/capacity/storage",
                json!("0"),
                &["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"],
            ),
            (
                "persistentvolumes",
                "/spec/persistentVolumeReclaimPolicy",
                json!("Some"),
                &[
                    "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Some\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
                ],
            ),
            (
                "persistentvolumes",
                "/spec/volumeMode",
                json!("Some"),
                &[
                    "spec.volumeMode: Unsupported value: \"Some\": supported values: \"Block\", \"Filesystem\"",
                ],
            ),
            (
                "persistentvolumes",
                "/spec/nodeAffinity",
                json!({}),
                &["spec.nodeAffinity.required: Required value: must specify required node constraints"],
            ),
            (
                "persistentvolumes",
                "/spec/hostPath",
                Value::Null,
                &["spec: Required value: must specify a volume type"],
            ),
            (
                "persistentvolumes",
                "/spec/storageClassName",
                json!("A"),
                &[&format!("spec.storageClassName: Invalid value: \"A\": {SUBDOMAIN}")],
            ),
            (
                "persistentvolumes",
                "/spec/volumeAttributesClassName",
                json!(""),
                &["spec.volumeAttributesClassName: Required value: an empty string is disallowed"],
            ),
            (
                "persistentvolumeclaims",
                "/spec/accessModes",
                json!([]),
                &["spec.accessModes: Required value: at least 1 access mode is required"],
            ),
            (
                "persistentvolumeclaims",
                "/spec/resources",
                json!({}),
                &["spec.resources[storage]: Required value"],
            ),
            (
                "persistentvolumeclaims",
                "/spec/dataSource",
                json!({"kind": "Pod", "name": "p"}),
                &[
                    "spec.dataSource: Invalid value: \"Pod\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                ],
            ),
            ("storageclasses.storage.k8s.io", "/provisioner", json!(""), &["provisioner: Required value"]),
            (
                "storageclasses.storage.k8s.io",
                "/reclaimPolicy",
                json!("Some"),
                &["reclaimPolicy: Unsupported value: \"Some\": supported values: \"Delete\", \"Retain\""],
            ),
            (
                "storageclasses.storage.k8s.io",
                "/volumeBindingMode",
                json!("Some"),
                &[
                    "volumeBindingMode: Unsupported value: \"Some\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
                ],
            ),
            (
                "storageclasses.storage.k8s.io",
                "/allowedTopologies",
                json!([{"matchLabelExpressions": [{"key": "a", "values": []}, {"key": "a", "values": ["b", "b"]}]}]),
                &[
                    "allowedTopologies[0].matchLabelExpressions[0].values: Required value",
                    "allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value: \"b\"",
                    "allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"a\"",
                ],
            ),
            (
                "volumeattributesclasses.storage.k8s.io",
                "/parameters",
                json!({}),
                &["parameters: Required value: must contain at least one key/value pair"],
            ),
            (
                "volumeattachments.storage.k8s.io",
                "/spec/source",
                json!({}),
                &[
                    "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                ],
            ),
            (
                "csidrivers.storage.k8s.io",
                "/spec/fsGroupPolicy",
                json!("Some"),
                &[
                    "spec.fsGroupPolicy: Unsupported value: \"Some\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
                ],
            ),
            (
                "csidrivers.storage.k8s.io",
                "/spec/volumeLifecycleModes",
                json!(["Some"]),
                &[
                    "spec.volumeLifecycleModes[0]: Unsupported value: \"Some\": supported values: \"Ephemeral\", \"Persistent\"",
                ],
            ),
            (
                "csidrivers.storage.k8s.io",
                "/spec/serviceAccountTokenInSecrets",
                json!(true),
                &[
                    "spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no tokenRequests are specified",
                ],
            ),
            (
                "csidrivers.storage.k8s.io",
                "/spec/tokenRequests",
                json!([{"audience": "a", "expirationSeconds": 1}, {"audience": "a"}]),
                &[
                    "spec.tokenRequests[0].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes",
                    "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                ],
            ),
            (
                "csinodes.storage.k8s.io",
                "/spec/drivers/0/nodeID",
                json!(""),
                &["spec.drivers[0].nodeID: Required value"],
            ),
            (
                "csinodes.storage.k8s.io",
                "/spec/drivers/0/topologyKeys",
                json!(["a", "a"]),
                &["spec.drivers[0].topologyKeys[1]: Duplicate value: \"a\""],
            ),
            (
                "csistoragecapacities.storage.k8s.io",
                "/storageClassName",
                json!(""),
                &["storageClassName: Required value"],
            ),
        ],
    );
}

#[test]
fn other_objects_are_refused_in_upstreams_words() {
    check(
        errors,
        &[
            (
                "resourcequotas",
                "/spec/hard",
                json!({"some": "1"}),
                &[
                    "spec.hard[some]: Invalid value: \"some\": must be a standard resource type or fully qualified",
                    "spec.hard[some]: Invalid value: \"some\": must be a standard resource for quota",
                ],
            ),
            (
                "resourcequotas",
                "/spec/hard/pods",
                json!("-1"),
                &["spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"],
            ),
            (
                "resourcequotas",
                "/spec/hard/pods",
                json!("0.5"),
                &["spec.hard[pods]: Invalid value: \"500m\": must be an integer"],
            ),
            (
                "resourcequotas",
                "/spec/scopes",
                json!(["BestEffort", "NotBestEffort"]),
                &["spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes"],
            ),
            (
                "limitranges",
                "/spec/limits/0/type",
                json!("some"),
                &[
                    "spec.limits[0].type: Invalid value: \"some\": must be a standard limit type or fully qualified",
                ],
            ),
            (
                "limitranges",
                "/spec/limits/0/min",
                json!({"cpu": "2"}),
                &[
                    "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
                    "spec.limits[0].default[cpu]: Invalid value: \"1\": min value 2 is greater than default value 1",
                ],
            ),
            (
                "roles.rbac.authorization.k8s.io",
                "/rules/0/verbs",
                json!([]),
                &["rules[0].verbs: Required value: verbs must contain at least one value"],
            ),
            (
                "roles.rbac.authorization.k8s.io",
                "/rules/0/apiGroups",
                json!([]),
                &["rules[0].apiGroups: Required value: resource rules must supply at least one api group"],
            ),
            (
                "roles.rbac.authorization.k8s.io",
                "/rules/0",
                json!({"verbs": ["get"], "nonResourceURLs": ["/x"]}),
                &[
                    "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
                ],
            ),
            (
                "clusterroles.rbac.authorization.k8s.io",
                "/rules/0/nonResourceURLs",
                json!(["/x"]),
                &[
                    "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs",
                ],
            ),
            (
                "clusterroles.rbac.authorization.k8s.io",
                "/aggregationRule",
                json!({}),
                &[
                    "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
                ],
            ),
            (
                "rolebindings.rbac.authorization.k8s.io",
                "/roleRef/kind",
                json!("Some"),
                &["roleRef.kind: Unsupported value: \"Some\": supported values: \"Role\", \"ClusterRole\""],
            ),
            (
                "rolebindings.rbac.authorization.k8s.io",
                "/subjects/0",
                json!({"kind": "Some", "name": "x"}),
                &[
                    "subjects[0].kind: Unsupported value: \"Some\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
                ],
            ),
            (
                "clusterrolebindings.rbac.authorization.k8s.io",
                "/subjects/0/namespace",
                json!(""),
                &["subjects[0].namespace: Required value"],
            ),
            (
                "leases.coordination.k8s.io",
                "/spec/leaseDurationSeconds",
                json!(0),
                &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
            ),
            (
                "leases.coordination.k8s.io",
                "/spec/leaseTransitions",
                json!(-1),
                &["spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "leases.coordination.k8s.io",
                "/spec/preferredHolder",
                json!("x"),
                &["spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined"],
            ),
            (
                "leases.coordination.k8s.io",
                "/spec/strategy",
                json!("Some"),
                &[
                    "spec.strategy.strategy: Unsupported value: \"Some\": supported values: \"OldestEmulationVersion\"",
                ],
            ),
            (
                "priorityclasses.scheduling.k8s.io",
                "/value",
                json!(1_000_000_001),
                &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
            ),
            (
                "priorityclasses.scheduling.k8s.io",
                "/preemptionPolicy",
                json!("Some"),
                &[
                    "preemptionPolicy: Unsupported value: \"Some\": supported values: \"PreemptLowerPriority\", \"Never\"",
                ],
            ),
            (
                "runtimeclasses.node.k8s.io",
                "/handler",
                json!("A"),
                &[&format!("handler: Invalid value: \"A\": {LABEL}")],
            ),
            (
                "runtimeclasses.node.k8s.io",
                "/overhead",
                json!({"podFixed": {"cpu": "-1"}}),
                &["overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"],
            ),
            (
                "nodes",
                "/spec/taints",
                json!([{"key": "a", "effect": "Some"}]),
                &[
                    "metadata.taints[0].effect: Unsupported value: \"Some\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
                ],
            ),
            (
                "nodes",
                "/spec/podCIDR",
                json!("x"),
                &[
                    "spec.podCIDRs[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                "namespaces",
                "/metadata/name",
                json!("a.b"),
                &["metadata.name: Invalid value: \"a.b\": must not contain dots"],
            ),
            (
                "serviceaccounts",
                "/metadata/name",
                json!("A"),
                &[&format!("metadata.name: Invalid value: \"A\": {SUBDOMAIN}")],
            ),
            (
                "secrets",
                "/data",
                json!({"a/b": ""}),
                &[
                    "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                ],
            ),
            (
                "secrets",
                "/type",
                json!("kubernetes.io/tls"),
                &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
            ),
            ("secrets", "/type", json!("kubernetes.io/ssh-auth"), &["data[ssh-privatekey]: Required value"]),
            (
                "configmaps",
                "/data",
                json!({"..": ""}),
                &["data[..]: Invalid value: \"..\": must not be '..'"],
            ),
        ],
    );
}

#[test]
fn what_must_stay_is_refused_in_upstreams_words() {
    check(
        change_errors,
        &[
            (
                "deployments.apps",
                "/spec/selector/matchLabels/a",
                json!("c"),
                &["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"],
            ),
            (
                "daemonsets.apps",
                "/spec/selector/matchLabels/a",
                json!("c"),
                &["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"],
            ),
            (
                "statefulsets.apps",
                "/spec/serviceName",
                json!("x"),
                &[
                    "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                ],
            ),
            (
                "jobs.batch",
                "/spec/completions",
                json!(5),
                &["spec.completions: Invalid value: 5: field is immutable"],
            ),
            (
                "jobs.batch",
                "/spec/completionMode",
                json!("Indexed"),
                &["spec.completionMode: Invalid value: \"Indexed\": field is immutable"],
            ),
            (
                "cronjobs.batch",
                "/spec/schedule",
                json!("TZ=UTC * * * * *"),
                &[
                    "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                ],
            ),
            (
                "persistentvolumes",
                "/spec/volumeMode",
                json!("Block"),
                &["volumeMode: Invalid value: \"Block\": field is immutable"],
            ),
            (
                "persistentvolumes",
                "/spec/hostPath/path",
                json!("/other"),
                &[
                    "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
                ],
            ),
            (
                "persistentvolumeclaims",
                "/spec/volumeMode",
                json!("Block"),
                &[
                    "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
                ],
            ),
            (
                "ingressclasses.networking.k8s.io",
                "/spec/controller",
                json!("c.d/e"),
                &["spec.controller: Invalid value: \"c.d/e\": field is immutable"],
            ),
            (
                "servicecidrs.networking.k8s.io",
                "/spec/cidrs",
                json!(["10.1.0.0/16"]),
                &["spec.cidrs[0]: Invalid value: \"10.1.0.0/16\": field is immutable"],
            ),
            (
                "ipaddresses.networking.k8s.io",
                "/spec/parentRef/name",
                json!("t"),
                &[
                    "spec.parentRef: Invalid value: {\"Group\":\"\",\"Resource\":\"services\",\"Namespace\":\"\",\"Name\":\"t\"}: field is immutable",
                ],
            ),
            (
                "rolebindings.rbac.authorization.k8s.io",
                "/roleRef/name",
                json!("s"),
                &[
                    "roleRef: Invalid value: {\"APIGroup\":\"rbac.authorization.k8s.io\",\"Kind\":\"Role\",\"Name\":\"s\"}: cannot change roleRef",
                ],
            ),
            (
                "priorityclasses.scheduling.k8s.io",
                "/value",
                json!(2),
                &["value: Forbidden: may not be changed in an update."],
            ),
            (
                "runtimeclasses.node.k8s.io",
                "/handler",
                json!("other"),
                &["handler: Invalid value: \"other\": field is immutable"],
            ),
            (
                "storageclasses.storage.k8s.io",
                "/provisioner",
                json!("q.io/y"),
                &["provisioner: Forbidden: updates to provisioner are forbidden."],
            ),
            (
                "storageclasses.storage.k8s.io",
                "/reclaimPolicy",
                json!("Retain"),
                &["reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."],
            ),
            (
                "storageclasses.storage.k8s.io",
                "/volumeBindingMode",
                json!("WaitForFirstConsumer"),
                &["volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable"],
            ),
            (
                "volumeattributesclasses.storage.k8s.io",
                "/driverName",
                json!("e.io"),
                &["driverName: Invalid value: \"e.io\": field is immutable"],
            ),
            (
                "csidrivers.storage.k8s.io",
                "/spec/attachRequired",
                json!(false),
                &["spec.attachedRequired: Invalid value: false: field is immutable"],
            ),
            (
                "csinodes.storage.k8s.io",
                "/spec/drivers/0/nodeID",
                json!("m"),
                &["spec.drivers[0].nodeID: Invalid value: \"m\": field is immutable"],
            ),
            (
                "csistoragecapacities.storage.k8s.io",
                "/storageClassName",
                json!("d"),
                &["storageClassName: Invalid value: \"d\": field is immutable"],
            ),
            (
                "endpointslices.discovery.k8s.io",
                "/addressType",
                json!("IPv6"),
                &["addressType: Invalid value: \"IPv6\": field is immutable"],
            ),
            (
                "controllerrevisions.apps",
                "/data",
                json!({"a": 1}),
                &["data: Invalid value: {\"a\":1}: field is immutable"],
            ),
            (
                "secrets",
                "/type",
                json!("kubernetes.io/tls"),
                &["type: Invalid value: \"kubernetes.io/tls\": field is immutable"],
            ),
            ("nodes", "/spec/providerID", json!("x"), &[]),
            (
                "pods",
                "/metadata/annotations",
                json!({"kubernetes.io/config.mirror": "x"}),
                &[
                    "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation",
                ],
            ),
        ],
    );
}

/// What `get -o yaml` shows of an object that says as little as it may.
#[test]
fn defaults_are_upstreams() {
    let cases = [
        (
            "pods",
            json!({"containers": [{"image": "i", "imagePullPolicy": "Always", "name": "c", "resources": {},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30}),
        ),
        (
            "services",
            json!({"internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "None", "type": "ClusterIP"}),
        ),
        (
            "persistentvolumeclaims",
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            "volumeMode": "Filesystem"}),
        ),
        (
            "persistentvolumes",
            json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/data", "type": ""}, "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}),
        ),
        (
            "horizontalpodautoscalers.autoscaling",
            json!({"maxReplicas": 3, "minReplicas": 1,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}),
        ),
        (
            "csidrivers.storage.k8s.io",
            json!({"attachRequired": true, "fsGroupPolicy": "ReadWriteOnceWithFSType",
            "podInfoOnMount": false, "requiresRepublish": false, "seLinuxMount": false, "storageCapacity": false,
            "volumeLifecycleModes": ["Persistent"]}),
        ),
        (
            "networkpolicies.networking.k8s.io",
            json!({"podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80, "protocol": "TCP"}]}]}),
        ),
    ];
    for (resource, expected) in cases {
        assert_eq!(prepared(resource, good(resource))["spec"], expected, "{resource}");
    }
    let of = |resource: &str, pointers: &[(&str, Value)]| {
        let object = prepared(resource, good(resource));
        for (pointer, value) in pointers {
            assert_eq!(object.pointer(pointer), Some(value), "{resource} {pointer}");
        }
    };
    of(
        "deployments.apps",
        &[
            ("/spec/replicas", json!(1)),
            ("/spec/revisionHistoryLimit", json!(10)),
            ("/spec/progressDeadlineSeconds", json!(600)),
            (
                "/spec/strategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
            ),
        ],
    );
    of(
        "daemonsets.apps",
        &[
            (
                "/spec/updateStrategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
            ),
            ("/spec/revisionHistoryLimit", json!(10)),
        ],
    );
    of(
        "statefulsets.apps",
        &[
            ("/spec/podManagementPolicy", json!("OrderedReady")),
            ("/spec/replicas", json!(1)),
            ("/spec/updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})),
            (
                "/spec/persistentVolumeClaimRetentionPolicy",
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
            ),
            ("/spec/volumeClaimTemplates/0/spec/volumeMode", json!("Filesystem")),
        ],
    );
    of(
        "jobs.batch",
        &[
            ("/spec/backoffLimit", json!(6)),
            ("/spec/completionMode", json!("NonIndexed")),
            ("/spec/completions", json!(1)),
            ("/spec/parallelism", json!(1)),
            ("/spec/suspend", json!(false)),
            ("/spec/manualSelector", json!(false)),
            ("/spec/podReplacementPolicy", json!("TerminatingOrFailed")),
            ("/spec/selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})),
        ],
    );
    of(
        "cronjobs.batch",
        &[
            ("/spec/concurrencyPolicy", json!("Allow")),
            ("/spec/suspend", json!(false)),
            ("/spec/successfulJobsHistoryLimit", json!(3)),
            ("/spec/failedJobsHistoryLimit", json!(1)),
        ],
    );
    of(
        "storageclasses.storage.k8s.io",
        &[("/reclaimPolicy", json!("Delete")), ("/volumeBindingMode", json!("Immediate"))],
    );
    of("priorityclasses.scheduling.k8s.io", &[("/preemptionPolicy", json!("PreemptLowerPriority"))]);
    of("secrets", &[("/type", json!("Opaque"))]);
    of(
        "namespaces",
        &[
            ("/metadata/labels", json!({"kubernetes.io/metadata.name": "x"})),
            ("/spec/finalizers", json!(["kubernetes"])),
        ],
    );
    of(
        "limitranges",
        &[
            ("/spec/limits/0/default", json!({"cpu": "1"})),
            ("/spec/limits/0/defaultRequest", json!({"cpu": "1"})),
        ],
    );
    of(
        "rolebindings.rbac.authorization.k8s.io",
        &[("/roleRef/apiGroup", json!("rbac.authorization.k8s.io"))],
    );
}

#[test]
fn a_pods_status_is_refused_in_upstreams_words() {
    let old = prepared("pods", good("pods"));
    let strategy = &registry::by_resource("pods").expect("a row").strategy;
    let validate = strategy.validate_part.expect("pods have parts");
    let errors = |status: Value| {
        let mut new = old.clone();
        new["status"] = status;
        (strategy.prepare_status)(&mut new, &old);
        texts(&validate(super::Subresource::Status, &new, &old))
    };
    assert_eq!(errors(json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]})), Vec::<String>::new());
    for (status, text) in [
        (
            json!({"qosClass": "Guaranteed"}),
            "status.qosClass: Invalid value: \"Guaranteed\": field is immutable",
        ),
        (
            json!({"podIPs": [{"ip": "x"}]}),
            "status.podIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"conditions": [{"type": "a b"}]}),
            "metadata.conditions[0].Type: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ),
    ] {
        assert_eq!(errors(status), [text]);
    }
}

#[test]
fn a_container_that_ended_for_good_stays_ended() {
    let strategy = &registry::by_resource("pods").expect("a row").strategy;
    let validate = strategy.validate_part.expect("pods have parts");
    let rule = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [3]}}]);
    let refused = |policy: &str, container: Value, code: i32| {
        let mut pod = good("pods");
        pod["spec"]["restartPolicy"] = policy.into();
        let name = pod["spec"]["containers"][0]["name"].clone();
        for (field, value) in container.as_object().expect("fields") {
            pod["spec"]["containers"][0][field] = value.clone();
        }
        let mut old = prepared("pods", pod);
        let mut new = old.clone();
        old["status"]["containerStatuses"] =
            json!([{"name": name, "state": {"terminated": {"exitCode": code}}}]);
        new["status"]["containerStatuses"] = json!([{"name": name, "state": {"running": {}}}]);
        texts(&validate(super::Subresource::Status, &new, &old))
    };
    let text =
        "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
    assert_eq!(refused("Never", json!({}), 1), [text]);
    assert_eq!(refused("OnFailure", json!({}), 0), [text]);
    assert_eq!(refused("Always", json!({"restartPolicy": "Never"}), 1), [text]);
    for (policy, container, code) in [
        ("Always", json!({}), 0),
        ("OnFailure", json!({}), 1),
        ("Never", json!({"restartPolicy": "OnFailure"}), 1),
        ("Never", json!({"restartPolicy": "Never", "restartPolicyRules": rule("Restart")}), 3),
        ("Never", json!({"restartPolicy": "Never", "restartPolicyRules": rule("RestartAllContainers")}), 1),
    ] {
        assert_eq!(refused(policy, container, code), Vec::<String>::new());
    }
}
