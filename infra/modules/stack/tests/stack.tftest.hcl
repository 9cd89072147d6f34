# The parts are wired as the application needs them, and wrong wishes are refused before anything is made.

mock_provider "google" {}

variables {
  project        = "a-project"
  region         = "europe-west4"
  domain         = "example.com"
  host           = "darkroom.example.com"
  images         = "my-account/darkroom"
  worker_version = "0.1.0-1234567"
  admin_ranges   = { jenkins = "192.0.2.10/32" }
  default_model  = "sdxl-base-1.0"
  nodes          = { machine_type = "e2-standard-4", min = 3, max = 8 }
  redis          = { memory_gb = 5, highly_available = true }
  workers = {
    queue        = "gen.sdxl"
    machine_type = "g2-standard-8"
    gpu_type     = "nvidia-l4"
    gpus         = 2
    spot         = false
    min          = 2
    max          = 8
  }
}

run "the_whole" {
  command = apply
  variables {
    deployer  = "serviceAccount:jenkins@p"
    settings  = { UPLOAD_MAX_BYTES = "50000000" }
    catalogue = "models: [mine]"
    hub_token = true
  }

  assert {
    condition     = output.observability_values.prometheus.gce.ports == [9464, 9465, 9100, 9400]
    error_message = "Prometheus must ask every worker of a machine."
  }

  assert {
    condition     = output.helm_values.storage.url == "gs://a-project-darkroom-pictures"
    error_message = "The chart must be told the bucket that was made."
  }
  assert {
    condition     = endswith(output.helm_values.image.registry, "/my-account")
    error_message = "The images are those of the account that they were pushed to."
  }
  assert {
    condition     = google_project_service.this["compute"].service == "compute.googleapis.com" && !google_project_service.this["compute"].disable_on_destroy
    error_message = "A new project's services are switched on, and stay on."
  }
  assert {
    condition     = output.helm_values.rabbitmq.internalLoadBalancer.sourceRanges == [output.ranges.workers]
    error_message = "Only the workers' network may reach the broker from outside."
  }
  assert {
    condition     = output.helm_values.settings.RESULT_TTL == 604800
    error_message = "The application and the bucket must keep pictures equally long."
  }
  assert {
    condition     = output.helm_values.settings.UPLOAD_MAX_BYTES == "50000000" && output.helm_values.catalogue == "models: [mine]"
    error_message = "The web tier is told what the workers are."
  }
  assert {
    condition     = output.helm_values.settings.DEFAULT_MODEL_VERSION == "sdxl-base-1.0"
    error_message = "A request that names no model gets one that has workers."
  }
}

run "somebody_deploys" {
  command = apply
  module { source = "../deployer" }
  variables {
    name           = "darkroom"
    member         = "serviceAccount:jenkins@p"
    worker_account = "projects/p/serviceAccounts/worker@p"
  }

  assert {
    condition     = google_service_account_iam_member.is_on_the_machine.service_account_id == "projects/p/serviceAccounts/worker@p"
    error_message = "Who deploys may be the worker's account, and no other."
  }
  assert {
    condition     = !anytrue([for name in google_project_iam_custom_role.deploys.permissions : endswith(name, ".delete") || endswith(name, ".create")])
    error_message = "Who deploys makes and deletes no machine."
  }
  assert {
    condition     = alltrue([for member in google_project_iam_member.deploys : member.member == "serviceAccount:jenkins@p"])
    error_message = "These rights are for who deploys."
  }
}

run "the_network" {
  command = apply
  module { source = "../network" }
  variables {
    name          = "darkroom"
    ssh_ranges    = ["192.0.2.10/32"]
    metrics_ports = [9464, 9465, 9100, 9400]
    health_port   = 9100
  }

  assert {
    condition     = !contains(google_compute_firewall.ssh.source_ranges, "0.0.0.0/0")
    error_message = "SSH must not be open to the world."
  }
  assert {
    condition     = google_compute_firewall.metrics.source_ranges == toset([var.ranges.pods])
    error_message = "Only the pods scrape the workers."
  }
  assert {
    condition     = one(google_compute_firewall.metrics.allow).ports == tolist(["9464", "9465", "9100", "9400"])
    error_message = "Each worker of a machine has a port of its own."
  }
  assert {
    condition     = google_compute_firewall.health.source_ranges == toset(["130.211.0.0/22", "35.191.0.0/16"])
    error_message = "Google's health checks come from its two networks, and from nowhere else."
  }
  assert {
    condition     = google_compute_subnetwork.nodes.private_ip_google_access
    error_message = "Private nodes must reach Google's own services."
  }
}

run "the_cluster" {
  command = apply
  module { source = "../cluster" }
  variables {
    name         = "darkroom"
    network      = "n"
    subnetwork   = "s"
    node_account = "nodes@p"
  }

  assert {
    condition     = one(one(google_container_node_pool.system.node_config).workload_metadata_config).mode == "GKE_METADATA"
    error_message = "Pods see their own account, never the node's."
  }
}

run "the_bucket" {
  command = apply
  module { source = "../bucket" }
  variables {
    name       = "pictures"
    location   = "europe-west4"
    result_ttl = 172800
    origins    = ["https://darkroom.example.com"]
    members    = { web = { role = "projects/p/roles/web", member = "serviceAccount:web@p" } }
  }

  assert {
    condition     = one([for rule in google_storage_bucket.this.lifecycle_rule : one(rule.condition).age if one(rule.action).type == "Delete"]) == 2
    error_message = "RESULT_TTL in days."
  }
  assert {
    condition     = google_storage_bucket.this.public_access_prevention == "enforced" && google_storage_bucket.this.uniform_bucket_level_access
    error_message = "Nobody but the roles."
  }
  assert {
    condition     = one(google_storage_bucket.this.cors).origin == tolist(["https://darkroom.example.com"])
    error_message = "The page uploads from its own address."
  }
}

run "the_accounts" {
  command = apply
  module { source = "../identity" }
  variables {
    name          = "darkroom"
    workload_pool = "a-project.svc.id.goog"
  }

  assert {
    condition = {
      for role, may in google_service_account_iam_member.signs : role => [may.service_account_id, may.member]
      } == {
      for role in ["web", "courier"] :
      role => [google_service_account.roles[role].name, google_service_account.roles[role].member]
    }
    error_message = "Web tier and courier sign, each only as itself."
  }
  assert {
    condition     = !contains(google_project_iam_custom_role.objects["worker"].permissions, "storage.objects.delete")
    error_message = "A worker deletes nothing."
  }
  assert {
    condition     = !contains(google_project_iam_custom_role.objects["courier"].permissions, "storage.objects.create")
    error_message = "The courier writes no pictures."
  }
  assert {
    condition     = google_service_account_iam_member.workload_identity["web"].member == "serviceAccount:a-project.svc.id.goog[darkroom/darkroom-web]"
    error_message = "The chart's account of the web tier is who may be it."
  }
  assert {
    condition     = google_service_account_iam_member.prometheus.member == "serviceAccount:a-project.svc.id.goog[observability/prometheus]"
    error_message = "Prometheus' account in the cluster is who may be it."
  }
  assert {
    condition     = google_project_iam_custom_role.finds_machines.permissions == toset(["compute.instances.list"])
    error_message = "Prometheus sees which machines there are, and no more."
  }
}

run "the_store" {
  command = apply
  module { source = "../redis" }
  variables {
    name      = "darkroom"
    network   = "managed"
    memory_gb = 1
  }

  assert {
    condition     = google_redis_instance.this.auth_enabled && google_redis_instance.this.transit_encryption_mode == "SERVER_AUTHENTICATION"
    error_message = "Password and TLS."
  }
  assert {
    condition     = google_redis_instance.this.redis_configs["maxmemory-policy"] == "noeviction"
    error_message = "Nothing of a job is dropped."
  }
  assert {
    condition     = endswith(output.url, "/0?ssl_check_hostname=false")
    error_message = "Its certificate bears no name that a client looks for."
  }
}

run "the_names" {
  command = apply
  module { source = "../dns" }
  variables {
    name          = "darkroom"
    network       = "n"
    subnetwork    = "s"
    workload_pool = "a-project.svc.id.goog"
  }

  assert {
    condition     = google_dns_managed_zone_iam_member.certificates.managed_zone == google_dns_managed_zone.public.name
    error_message = "cert-manager writes in the public zone, and in no other."
  }
  assert {
    condition     = google_service_account_iam_member.certificates.member == "serviceAccount:a-project.svc.id.goog[cert-manager/cert-manager]"
    error_message = "cert-manager's account in the cluster is who may be it."
  }
}

# ---- Refusals

run "kubernetes_open_to_the_world" {
  command = plan
  module { source = "../cluster" }
  variables {
    name         = "darkroom"
    network      = "n"
    subnetwork   = "s"
    node_account = "nodes@p"
    admin_ranges = { everybody = "0.0.0.0/0" }
  }
  expect_failures = [var.admin_ranges]
}

run "everybody_deploys" {
  command = plan
  module { source = "../deployer" }
  variables {
    name           = "darkroom"
    member         = "allUsers"
    worker_account = "worker"
  }
  expect_failures = [var.member]
}

run "ssh_open_to_many" {
  command = plan
  module { source = "../network" }
  variables {
    name        = "darkroom"
    ssh_ranges  = ["10.0.0.0/8"]
    health_port = 9100
  }
  expect_failures = [var.ssh_ranges]
}

run "pictures_for_everybody" {
  command = plan
  module { source = "../bucket" }
  variables {
    name       = "pictures"
    location   = "europe-west4"
    result_ttl = 100
    origins    = ["*"]
    members    = { all = { role = "roles/storage.objectViewer", member = "allUsers" } }
  }
  expect_failures = [var.result_ttl, var.origins, var.members]
}

run "a_host_of_another_domain" {
  command = plan
  module { source = "../dns" }
  variables {
    name          = "darkroom"
    network       = "n"
    subnetwork    = "s"
    host          = "darkroom.example.org"
    workload_pool = "p"
  }
  expect_failures = [var.host]
}
